"""Pictures of a pretraining: what was hidden and what the model makes of it, and the loss curve."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib.figure import Figure

from ..protocol.plots import GREY, as_shipped, new_figure

