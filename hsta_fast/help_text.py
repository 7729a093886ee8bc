"""The list of commands and the examples in the help of `hsta-fast`."""

from collections.abc import Mapping

# Commands by what they are for.
GROUPS = {
    "data": ("synth", "doctor", "prepare"),
    "training": ("pretrain", "train", "evaluate", "ablate"),
    "results": ("audit", "compare", "export"),
    "videos": ("predict", "serve", "spot"),
    "machine": ("info", "profile", "build", "completion"),
}

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "hsta-fast synth --out faces",
        "hsta-fast train --data faces --labels emotion3 --model hsta_tiny --image-size 112",
        "hsta-fast evaluate runs/hsta",
    ),
    "synth": (
        "hsta-fast synth --out faces",
        "hsta-fast synth --out sc --layout casme2 --subjects 6 --clips-per-subject 6 --faults all",
        "hsta-fast synth --out recordings --long --subjects 4 --minutes 2",
    ),
    "doctor": (
        "hsta-fast doctor /data/casme3",
        "hsta-fast doctor /data/casme2 /data/samm /data/smic --json",
    ),
    "prepare": (
        "hsta-fast prepare --data /data/casme3",
        "hsta-fast prepare --config runs/hsta/config.json",
    ),
    "pretrain": (
        "hsta-fast pretrain --data /data/casme3 --name start",
        "hsta-fast pretrain --data faces --model hsta_tiny --image-size 112 --leave-out casme3/spNO.1",
    ),
    "train": (
        "hsta-fast train --data /data/casme3 --name casme3 --dry-run",
        "hsta-fast train --data /data/casme2 --more-data /data/samm /data/smic --labels megc2019 "
        "--protocol composite",
        "hsta-fast train --data /data/casme3 --init videomae_vit_b.pth --layer-decay 0.75",
        "hsta-fast train --data /data/mine --crop-face --name cropped",
        "hsta-fast train --data /data/casme2 --more-data /data/samm --task units "
        "--protocol leave-one-dataset-out",
        "hsta-fast train --config runs/casme3/config.json --resume",
    ),
    "evaluate": (
        "hsta-fast evaluate runs/casme3",
        "hsta-fast evaluate runs/casme3 --data /moved/casme3",
    ),
    "predict": (
        "hsta-fast predict runs/casme3 interview.mp4",
        "hsta-fast predict runs/casme3 clip.mp4 --onset 40 --offset 90 --json",
        "hsta-fast predict runs/casme3 'recordings/*.mp4' --out predictions --csv predictions.csv",
        "hsta-fast predict runs/casme3 --camera 0",
    ),
    "export": (
        "hsta-fast export runs/casme3 --out casme3.onnx",
        "hsta-fast export runs/casme3 --fold casme3/spNO.7 --out casme3.pt2",
    ),
    "spot": (
        "hsta-fast spot interview.mp4 --plot interview.png",
        "hsta-fast spot /data/casme_squared --out spotted.csv",
    ),
    "audit": (
        "hsta-fast audit runs/casme3/predictions.csv --clips runs/casme3/clips.csv",
        "hsta-fast audit predictions.csv --clips clips.csv --folds folds.csv",
        "hsta-fast audit theirs.xlsx --label truth --predicted guess --classes negative,positive,surprise",
        "hsta-fast audit spotted.csv --spotting recordings",
        "hsta-fast audit predicted.csv --spotting recordings --labels emotion3",
    ),
    "compare": (
        "hsta-fast compare runs/casme3 runs/other",
        "hsta-fast compare runs/casme3 theirs.csv --classes negative,positive,surprise --latex table.tex",
    ),
    "ablate": (
        "hsta-fast ablate --table 2 --data /data/casme3",
        'hsta-fast ablate --table 1 --rows "video 0" "video 1" --data /data/casme3 --dry-run',
    ),
    "serve": ("hsta-fast serve runs/casme3", "hsta-fast serve runs/casme3 --port 0 --no-browser"),
    "info": ("hsta-fast info", "hsta-fast info --json"),
    "profile": (
        "hsta-fast profile",
        "hsta-fast profile --model hsta_tiny --image-size 112 --batch-sizes 1,8 --against compiled,published",
    ),
    "build": ("hsta-fast build",),
    "completion": (
        "hsta-fast completion bash > ~/.local/share/bash-completion/completions/hsta-fast",
        "hsta-fast completion fish > ~/.config/fish/completions/hsta-fast.fish",
    ),
}


def examples_of(name: str) -> str:
    """What follows the help of a command; of hsta-fast itself if `name` is empty."""
    return "".join(f"{line}\n" for line in ("examples:", *(f"  {line}" for line in EXAMPLES[name])))


def overview(summaries: Mapping[str, str], version: str) -> str:
    """The help of hsta-fast itself: each command with its summary, in groups."""
    lines = [
        "usage: hsta-fast COMMAND [FLAGS]",
        "",
        f"Hierarchical Space-Time Attention for micro-expression recognition, version {version} (--version).",
    ]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<12}{summaries[name]}" for name in names)]
    return "\n".join([*lines, "", "hsta-fast COMMAND --help lists its flags.", "", examples_of("")])
