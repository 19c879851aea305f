// Draws the figures that are visible, in the page's colours, and wires the drop-downs.
(() => {
  "use strict";

  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const dark = matchMedia("(prefers-color-scheme: dark)");

  const themed = () => {
    const text = { labelColor: colour("--ink"), titleColor: colour("--ink") };
    const lines = { gridColor: colour("--grid"), domainColor: colour("--rule") };
    return {
      background: null,
      font: "system-ui, sans-serif",
      axis: {
        ...text,
        ...lines,
        grid: true,
        tickColor: colour("--rule"),
        titleFontWeight: "normal",
        titleFontSize: 12,
        labelFontSize: 11,
      },
      legend: { ...text, labelFontSize: 12 },
      view: { stroke: colour("--rule") },
    };
  };

  // The page's policy forbids eval, so Vega interprets its expressions.
  const draw = (plot) => {
    const spec = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    return vegaEmbed(plot, spec, {
      mode: "vega-lite",
      renderer: "canvas",
      ast: true,
      actions: false,
      config: themed(),
      tooltip: { theme: dark.matches ? "dark" : "light" },
    });
  };

  // One figure after the other, so that the page answers in between.
  const drawShown = async (root) => {
    for (const plot of root.querySelectorAll(".plot")) {
      if (plot.closest("[hidden]")) continue;
      await draw(plot);
      await new Promise((resolve) => setTimeout(resolve));
    }
  };

  const choose = (select) => {
    const section = select.closest("section");
    for (const block of section.querySelectorAll("[data-choice]")) {
      block.hidden = block.dataset.choice !== select.value;
    }
    return section;
  };

  // Without JavaScript all blocks of a drop-down are shown. A browser restores a choice on reload.
  for (const select of document.querySelectorAll("select.chooser")) {
    choose(select);
    select.addEventListener("change", () => drawShown(choose(select)));
  }
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
  dark.addEventListener("change", () => drawShown(document));
  drawShown(document);
  document.documentElement.dataset.readyAfter = performance.now();
  document.documentElement.dataset.ready = "true";
})();
