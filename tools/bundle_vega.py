"""Write the JavaScript of Vega, Vega-Lite and Vega-Embed that report pages contain.

    python tools/bundle_vega.py

Run it after an update of vl-convert, which brings these libraries. Bundling takes seconds, so the
result is kept with the package instead of being made for every page.
"""

from __future__ import annotations

from pathlib import Path

import vl_convert

PAGE = Path(__file__).resolve().parent.parent / "src/distillens/report/templates"

NOTICE = """\
/*! Vega {vega}, Vega-Lite {lite} and Vega-Embed {embed}, bundled by tools/bundle_vega.py.
Copyright (c) 2013-2025, University of Washington Interactive Data Lab. BSD 3-Clause License.

Redistribution and use in source and binary forms, with or without modification, are permitted
provided that the following conditions are met: 1. Redistributions of source code must retain the
above copyright notice, this list of conditions and the following disclaimer. 2. Redistributions in
binary form must reproduce the above copyright notice, this list of conditions and the following
disclaimer in the documentation and/or other materials provided with the distribution. 3. Neither the
name of the copyright holder nor the names of its contributors may be used to endorse or promote
products derived from this software without specific prior written permission. THIS SOFTWARE IS
PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR
PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY
DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED
TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS
INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR
TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF
ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.

It contains D3 modules. Copyright 2010-2023 Mike Bostock. ISC License. Permission to use, copy,
modify, and/or distribute this software for any purpose with or without fee is hereby granted,
provided that the above copyright notice and this permission notice appear in all copies. THE SOFTWARE
IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY
SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF
USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING
OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE. */
"""


def main() -> None:
    """Bundle the libraries and write them with their licences."""
    notice = NOTICE.format(
        vega=vl_convert.get_vega_version(),
        lite=vl_convert.get_vegalite_versions()[-1],
        embed=vl_convert.get_vega_embed_version(),
    )
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # The page's data blocks and scripts end at this tag, so no library may write it.
    assert "</script" not in script.lower()
    # In a function, so that the names of the bundle are not global.
    text = f"{notice}(() => {{\n{script}\n}})();\n"
    (PAGE / "vega.js").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
