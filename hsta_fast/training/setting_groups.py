"""The settings of a run in groups, as the command line shows them."""

from dataclasses import dataclass, fields
from typing import get_type_hints

from .config import TrainConfig
from .settings import (
    DataSettings,
    HardwareSettings,
    InputSettings,
    ModelSettings,
    OptimSettings,
    ProtocolSettings,
    RunSettings,
)


@dataclass(frozen=True, kw_only=True)
class SettingGroups:
    """The settings of a `TrainConfig` in groups, in the order in which the help lists them."""

    data: DataSettings
    model: ModelSettings
    input: InputSettings
    protocol: ProtocolSettings
    training: OptimSettings
    run: RunSettings
    hardware: HardwareSettings

    @classmethod
    def of(cls, config: TrainConfig) -> "SettingGroups":
        """The groups of `config`."""
        kinds = get_type_hints(cls)
        return cls(
            **{
                name: kind(**{field.name: getattr(config, field.name) for field in fields(kind)})
                for name, kind in kinds.items()
            }
        )

    def joined(self) -> TrainConfig:
        """The settings of all groups."""
        groups = (getattr(self, field.name) for field in fields(self))
        return TrainConfig(**{name: value for group in groups for name, value in vars(group).items()})

    def checked(self) -> TrainConfig:
        """`joined`, if a run can have these settings.

        Raises:
            ValueError: it cannot; the message names the flag.
        """
        config = self.joined()
        config.check()
        if not config.resume:  # older runs could end before their warm-up
            config.check_warm_up()
        return config
