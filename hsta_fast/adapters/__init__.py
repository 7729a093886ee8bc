"""The fast ops inside other people's models: what is known of each library's modules, one file each."""

from .accelerating import accelerate, register_adapter
from .report import Report, Row
from .switching import Left, Switch, Switched, switch_class

__all__ = ["Left", "Report", "Row", "Switch", "Switched", "accelerate", "register_adapter", "switch_class"]
