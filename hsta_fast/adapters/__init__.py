"""The fast ops inside other people's models: what is known of each library's modules, one file each."""

from .accelerating import accelerate, register_adapter
from .report import Report, Row
from .switching import Find, Left, Switch, Switched, bypassed, switch_class

__all__ = [
    "Find",
    "Left",
    "Report",
    "Row",
    "Switch",
    "Switched",
    "accelerate",
    "bypassed",
    "register_adapter",
    "switch_class",
]
