"""Methods of `HSTA` for the hub of Hugging Face: save, send and read a model. What they do: `hub.py`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import hsta_fast


class HubMethods:
    """They need the package huggingface_hub, which is imported when one of them is called."""

    def save_pretrained(self, folder: Path | str, *, run: Path | str | None = None) -> None:
        """Write model.safetensors, config.json and README.md, the model card, into a folder.

        See `hsta_fast.hub.save_pretrained`, which also takes a wrapped model.
        """
        import hsta_fast  # here: `hub` needs the model, which is not complete while this file is imported

        hsta_fast.hub.save_pretrained(cast(Any, self), folder, run=run)

    def push_to_hub(
        self,
        repo: str,
        *,
        run: Path | str | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        message: str = "Model of hsta_fast",
    ) -> str:
        """Send what `save_pretrained` writes to a repository on the hub; see `hsta_fast.hub.push_to_hub`."""
        import hsta_fast

        return hsta_fast.hub.push_to_hub(
            cast(Any, self), repo, run=run, private=private, token=token, revision=revision, message=message
        )

    @staticmethod
    def from_pretrained(
        folder_or_repo: Path | str,
        *,
        revision: str | None = None,
        cache_dir: Path | str | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> "hsta_fast.HSTA":
        """Read a model from a folder or from the hub; see `hsta_fast.hub.from_pretrained`."""
        import hsta_fast

        return hsta_fast.hub.from_pretrained(
            folder_or_repo,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
        )
