"""HSTA: the model and its configuration.

B batch, T video frames, S = 2 special frames, N patch tokens, C width, H heads, K HSTA layers.
Branch 0 is special, 1 is video, also in state dicts.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .crossmodal import CrossmodalSpaceTimeAttention, reason_to_copy
from .frame_checks import check_packed, check_tensor, check_values, may_read, other_size
from .hub_methods import HubMethods
from .inputs import ModelInputs
from .layers import LN_EPS, USTA, TubeletEmbed
from .ops.choice import transformed

BRANCHES = ("special", "video")
SPECIAL_FRAMES = 2
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Head = Literal["cls", "cls+last", "mean"]


@dataclass(frozen=True, kw_only=True)
class HSTAConfig:
    """Everything that shapes the model. Pairs are (special, video).

    Attributes:
        num_classes: width of the output.
        widths: embedding width C of each branch.
        num_heads: heads H of each branch; they divide the widths.
        patch_sizes: side p of the square patches, in pixels.
        tubelet_depth: frames per tubelet.
        norm_eps: eps of the layer norms of each branch, but for those of CSTA.
        first_position: position of the first patch of each branch in the fixed table: 1, after that of the
            CLS; or 0, as in models without a CLS.
        num_layers: K, HSTA layers.
        n_special: USTA layers of the special branch in each HSTA layer; 0 keeps the branch.
        n_video: USTA layers of the video branch in each HSTA layer; 0 keeps the branch.
        csta: whether each HSTA layer ends with crossmodal attention (with both branches only).
        branches: ("special", "video"), or one of them for a model of one modality.
        head: features of each branch: "cls", "cls+last" (CLS and last token) or "mean" (of the CLS and all
            tokens).
        mlp_ratio: hidden width of the MLP over C.
        dropout: after the position table, after every attention projection, and twice in the MLP.
        drop_path: rate at the last USTA layer, rising linearly from 0 at the first; none in CSTA.
        head_dropout: before the head.
    """

    num_classes: int = 7
    widths: tuple[int, int] = (384, 768)
    num_heads: tuple[int, int] = (12, 12)
    patch_sizes: tuple[int, int] = (12, 16)
    tubelet_depth: int = 2
    norm_eps: tuple[float, float] = (LN_EPS, LN_EPS)
    first_position: tuple[int, int] = (1, 1)
    num_layers: int = 4
    n_special: int = 1
    n_video: int = 2
    csta: bool = True
    branches: tuple[str, ...] = BRANCHES
    head: Head = "cls"
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.0
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        def check(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise ValueError(f"{name} expected {expected}, got {getattr(self, name)!r}")

        for name in ("widths", "num_heads", "patch_sizes"):
            pair = getattr(self, name)
            ok = isinstance(pair, tuple) and len(pair) == 2 and all(type(x) is int and x > 0 for x in pair)
            check(ok, name, "a pair of positive integers (special, video)")
        eps = self.norm_eps
        ok = isinstance(eps, tuple) and len(eps) == 2 and all(type(x) is float and 0 < x < 1 for x in eps)
        check(ok, "norm_eps", "a pair of floats in (0, 1) (special, video)")
        pairs = [(special, video) for special in (0, 1) for video in (0, 1)]
        check(self.first_position in pairs, "first_position", f"one of {pairs} (special, video)")
        counts = {"num_classes": 1, "tubelet_depth": 1, "num_layers": 1, "n_special": 0, "n_video": 0}
        for name, least in counts.items():
            value = getattr(self, name)
            check(type(value) is int and value >= least, name, f"an integer >= {least}")
        for name in ("dropout", "drop_path", "head_dropout"):
            value = getattr(self, name)
            check(isinstance(value, int | float) and 0.0 <= value < 1.0, name, "a number in [0, 1)")
        check(type(self.csta) is bool, "csta", "True or False")
        check(
            self.branches in (BRANCHES, *((b,) for b in BRANCHES)), "branches", f"{BRANCHES} or one of them"
        )
        check(self.head in get_args(Head), "head", f"one of {get_args(Head)}")
        check(isinstance(self.mlp_ratio, int | float) and self.mlp_ratio > 0, "mlp_ratio", "a number > 0")
        for branch, width, heads in zip(BRANCHES, self.widths, self.num_heads, strict=True):
            check(
                width % heads == 0, "num_heads", f"divisors of the widths {self.widths} ({branch}: {width})"
            )
        if "special" in self.branches:
            divides = SPECIAL_FRAMES % self.tubelet_depth == 0
            check(divides, "tubelet_depth", f"a divisor of the {SPECIAL_FRAMES} special frames")

    @property
    def branch_ids(self) -> tuple[int, ...]:
        """Indices of the model's branches: 0 special, 1 video."""
        return tuple(BRANCHES.index(branch) for branch in self.branches)


def position_table(num_positions: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """The fixed sine / cosine table (1, num_positions, width) in float64; position 0 is the CLS.

    angle(pos, j) = pos / 10000 ** (2 (j // 2) / width), sine for even j, cosine for odd j.
    """
    channel = torch.arange(width, dtype=torch.float64, device=device)
    rate = 10000.0 ** (2 * (channel // 2) / width)
    angle = torch.arange(num_positions, dtype=torch.float64, device=device).unsqueeze(1) / rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).unsqueeze(0)


def branch_positions(num_patches: int, width: int, first: int, device: torch.device | str = "cpu") -> Tensor:
    """Positions of a branch (1, 1 + num_patches, width) in float64: 0 for the CLS, then `first`, ... ."""
    table = position_table(1 + num_patches, width, device)
    return table if first == 1 else torch.cat([table[:, :1], table[:, :-1]], 1)


class HSTALayer(nn.Module):
    """n USTA layers on each branch, side by side, then one CSTA (Eq. 14)."""

    def __init__(self, config: HSTAConfig, drop_paths: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(
            {
                str(d): nn.ModuleList(
                    USTA(
                        config.widths[d],
                        num_heads=config.num_heads[d],
                        mlp_ratio=config.mlp_ratio,
                        dropout=config.dropout,
                        drop_path=drop_paths[i],
                        eps=config.norm_eps[d],
                    )
                    for i in range((config.n_special, config.n_video)[d])
                )
                for d in config.branch_ids
            }
        )
        self.csta = (
            CrossmodalSpaceTimeAttention(
                config.widths, num_heads=config.num_heads, dropout=config.dropout, inplace=True
            )
            if config.csta and len(config.branches) == 2
            else None
        )

    def forward(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        """{branch index: (B, N + 1, C)} -> the same."""
        out = {}
        overwritten = self.csta is not None and self.csta.writes_into_states()
        for d, blocks in self.blocks.items():
            x = states[d]
            block: nn.Module | None = None
            for block in cast(nn.ModuleList, blocks):
                x = block(x)
            if overwritten and reason_to_copy(x, given=states[d], made_by=block) is not None:
                x = x.clone()
            out[d] = x
        if self.csta is not None:
            out["0"], out["1"] = self.csta(out["0"], out["1"])
        return out


def _not_torchscript(got: str) -> RuntimeError:
    return RuntimeError(f"HSTA expected torch.export.export, or torch.compile, got {got}")


class HSTA(nn.Module, HubMethods):
    """Hierarchical Space-Time Attention (Eq. 14-16): clips to logits.

    Parameters are initialised as in the paper's code: linear layers and CLS with a truncated normal of 0.02,
    biases with 0.

    Attributes:
        config: everything that shapes the model.
        inputs: what the model was trained on, if that is known.
        notes: text about the model by name, which its file keeps, such as why its scores are leaky.
        init_report: what `create_model(init=...)` took from the files, key by key.
    """

    inputs: ModelInputs | None = None
    init_report: Any = None
    notes: Mapping[str, str] = MappingProxyType({})

    def __init__(self, config: HSTAConfig) -> None:
        super().__init__()
        self.config = config
        ids = config.branch_ids
        self.patch_embed = nn.ModuleDict(
            {
                str(d): TubeletEmbed(
                    config.widths[d],
                    patch_size=config.patch_sizes[d],
                    tubelet_depth=config.tubelet_depth,
                    mean=IMAGENET_MEAN,
                    std=IMAGENET_STD,
                )
                for d in ids
            }
        )
        self.cls_token = nn.ParameterDict({str(d): torch.zeros(1, 1, config.widths[d]) for d in ids})
        self.pos_dropout = nn.Dropout(config.dropout)
        deepest = max((config.n_special, config.n_video)[d] for d in ids)
        last = max(1, config.num_layers * deepest - 1)
        rates = [config.drop_path * i / last for i in range(config.num_layers * deepest)]
        self.blocks = nn.ModuleList(
            HSTALayer(config, rates[k * deepest : (k + 1) * deepest]) for k in range(config.num_layers)
        )
        self.norm = nn.ModuleDict(
            {str(d): nn.LayerNorm(config.widths[d], eps=config.norm_eps[d]) for d in ids}
        )
        self.head_dropout = nn.Dropout(config.head_dropout)
        features = sum(config.widths[d] for d in ids) * (2 if config.head == "cls+last" else 1)
        self.head = nn.Linear(features, config.num_classes)
        # What was said or read once. Replicas of DataParallel, new in each forward, share the set.
        self._once: set[str] = set()
        self._tables: dict[tuple[int, int, int, torch.dtype, torch.device], Tensor] = {}
        self.apply(self._initialise)
        for cls in self.cls_token.values():
            nn.init.trunc_normal_(cls, std=0.02)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def _positions(self, d: int, shape: torch.Size) -> Tensor:
        """The table for frames of `shape` (B, 3, T, H, W) in the model's dtype, computed once per size."""
        c, cls = self.config, self.cls_token[str(d)]
        patch = (c.tubelet_depth, c.patch_sizes[d], c.patch_sizes[d])
        grid = [size // p for size, p in zip(shape[2:], patch, strict=True)]
        size = grid[0] * grid[1] * grid[2], c.widths[d], c.first_position[d]
        # A cache would be guarded: one more graph for every size. Some modes have sizes without a hash.
        if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
            return branch_positions(*size, cls.device).to(cls.dtype)
        key = (*size, cls.dtype, cls.device)
        if key in self._tables:
            return self._tables[key]
        # inference_mode off: a later training step must be able to use the same table.
        with torch.inference_mode(False):
            table = branch_positions(*size).to(cls.device, cls.dtype)
        if type(table) is Tensor and not transformed():  # not a fake tensor, not one of torch.func
            self._tables[key] = table
        return table

    def _frames(self, video: Tensor | None, special: Tensor | None) -> dict[int, Tensor]:
        """The frames of each branch (B, 3, T or S, H, W), checked."""
        branches, depth = self.config.branches, self.config.tubelet_depth
        given = {name: x for name, x in (("special", special), ("video", video)) if x is not None}
        if branches == ("special",) and special is None and video is not None:
            given = {"special": video}  # model(frames) for a model of one branch
        for name, x in given.items():
            check_tensor(name, x, f"(B, 3, {'S' if name == 'special' else 'T'}, H, W)")
        if branches == BRANCHES and special is None and video is not None:
            check_packed(video.shape[2], SPECIAL_FRAMES, depth, self.inputs)
            cut = video.shape[2] - SPECIAL_FRAMES
            given = {"special": video[:, :, cut:], "video": video[:, :, :cut]}
        if set(given) != set(branches):
            raise ValueError(f"frames expected one input per branch {branches}, got {tuple(given) or 'none'}")
        for name, x in given.items():
            if name == "special" and x.shape[2] != SPECIAL_FRAMES:
                raise ValueError(f"special expected {SPECIAL_FRAMES} frames, got {x.shape[2]}")
            if x.shape[2] == 0 or x.shape[2] % depth:
                raise ValueError(
                    f"{name} expected T to be a multiple of the tubelet depth {depth}, got T = {x.shape[2]}"
                )
            patch = self.config.patch_sizes[BRANCHES.index(name)]
            if min(x.shape[3:]) < patch:
                raise ValueError(
                    f"{name} expected at least {patch} x {patch} pixels, got {tuple(x.shape[3:])}"
                )
        batches = [x.shape[0] for x in given.values()]  # not a set: it would fix B while compiling
        if batches[0] != batches[-1]:
            sizes = ", ".join(f"{name} {x.shape[0]}" for name, x in given.items())
            raise ValueError(f"video and special expected one batch size, got {sizes}")
        if not torch.compiler.is_compiling():
            self._check_as_trained({name: given[name] for name in reversed(branches)})
        return {BRANCHES.index(name): given[name] for name in branches}

    def _check_as_trained(self, given: Mapping[str, Tensor]) -> None:
        """Refuse float frames that were not normalised; warn once of a size other than that of the training.

        Reading a value makes the CPU wait for the device, so values on another device are read once.
        """
        done = self.__dict__.setdefault("_once", set())  # a model pickled before has none
        for name, x in given.items():
            once = x.device.type != "cpu"
            if x.is_floating_point() and may_read(x) and not (once and name in done):
                flow = name == "special" and (self.inputs is None or self.inputs.flow is not None)
                check_values(name, x, or_flow=flow)
                if once:
                    done.add(name)
        if self.inputs is None or "other size" in done:
            return
        differences = (other_size(name, x, self.inputs) for name, x in given.items())
        if (difference := next(filter(None, differences), None)) is not None:
            done.add("other size")
            warnings.warn(difference, stacklevel=6)  # the line that called the model

    def forward(self, video: Tensor | None = None, special: Tensor | None = None) -> Tensor:
        """Clips to logits (B, num_classes).

        Args:
            video: (B, 3, T, H, W); or, without `special`, the published packing (B, 3, T + 2, H, W): T video
                frames, then onset and apex. T is a multiple of the tubelet depth; images have at least the
                size of a patch. uint8 is normalised here (ImageNet mean and std), float beforehand.
            special: (B, 3, 2, H, W): onset and apex, or two frames of optical flow. A model of one branch
                takes only the frames of that branch.

        Raises:
            ValueError: frames that do not fit the model or each other, or float frames with the values of
                bytes (over 32). Values are read at every call on the CPU, at the first one on another device,
                and never while torch.compile, torch.export or a transform traces.
            RuntimeError: under torch.jit.trace.

        Warns once of another image size or T than the model was trained with, if `inputs` tell.
        """
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise _not_torchscript("torch.jit.trace")
        states = {}
        for d, frames in self._frames(video, special).items():
            key = str(d)
            x = self.patch_embed[key](frames, self.cls_token[key], self._positions(d, frames.shape))
            states[key] = self.pos_dropout(x)
        for layer in self.blocks:
            states = layer(states)
        states = {key: self.norm[key](x) for key, x in states.items()}
        if self.config.head == "mean":
            features = [x.mean(1) for x in states.values()]
        else:
            features = [x[:, 0] for x in states.values()]
            if self.config.head == "cls+last":
                features += [x[:, -1] for x in states.values()]
        return self.head(self.head_dropout(torch.cat(features, dim=1)))

    def __prepare_scriptable__(self) -> "HSTA":
        """Called by torch.jit.script."""
        raise _not_torchscript("torch.jit.script")

    def published_state_dict(self) -> dict[str, Tensor]:
        """The parameters under the published model's keys.

        Raises:
            ValueError: the published model has no such configuration (one branch, no CSTA, n_s or n_v = 0;
                norms or positions of another source).
        """
        c, published = self.config, HSTAConfig()
        if (c.norm_eps, c.first_position) != (published.norm_eps, published.first_position):
            raise ValueError(
                f"config expected norm_eps {published.norm_eps} and first_position "
                f"{published.first_position} (as published), got {c.norm_eps} and {c.first_position}"
            )
        if c.branches != BRANCHES or not c.csta or min(c.n_special, c.n_video) < 1:
            raise ValueError(
                "config expected both branches, csta, n_special >= 1 and n_video >= 1 (as published), got "
                f"branches {c.branches}, csta {c.csta}, n_special {c.n_special}, n_video {c.n_video}"
            )
        return {published_key(key): value for key, value in self.state_dict().items()}


def published_key(key: str) -> str:
    """The published name of a parameter of `HSTA`: there the CSTA modules belong to the HSTA layer itself."""
    return key.replace(".csta.", ".")
