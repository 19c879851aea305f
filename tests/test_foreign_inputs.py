"""Inputs that this project did not make: the tests of `tests/foreign`, one module for each area."""

import pytest

pytest.register_assert_rewrite("foreign")

from foreign.audit_tables import *  # noqa: E402, F403
from foreign.command_line import *  # noqa: E402, F403
from foreign.data_sources import *  # noqa: E402, F403
from foreign.fair_comparisons import *  # noqa: E402, F403
from foreign.given_teacher import *  # noqa: E402, F403
from foreign.kernel import *  # noqa: E402, F403
from foreign.losses import *  # noqa: E402, F403
from foreign.normalisation import *  # noqa: E402, F403
from foreign.sequences import *  # noqa: E402, F403
from foreign.teacher_inputs import *  # noqa: E402, F403
from foreign.training_inputs import *  # noqa: E402, F403
from foreign.weights import *  # noqa: E402, F403
