"""Which failures say that memory ran out, and so must never be taken for something else."""

from __future__ import annotations

from distillens.forward.device_errors import ran_out_of_memory as ran_out_of_memory
