"""Trained models as others hand them on: a folder or a name on the Hugging Face hub, with a card beside the weights."""

from pathlib import Path

from huggingface_hub import snapshot_download

CARD = "README.md"


def model_folder(folder_or_name: str | Path) -> Path:
    """A local folder as it is; else the files of a hub name, downloaded once and then read from the hub's own cache.

    Raises ValueError where it is neither.
    """
    if Path(folder_or_name).is_dir():
        return Path(folder_or_name)
    try:
        return Path(snapshot_download(str(folder_or_name)))
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{folder_or_name} is no folder here and no model on the hub ({reason})") from None


def write_card(folder: Path, title: str, facts: str, library: str = "pytorch", task: str = "") -> None:
    """Write the model card: what a reader and the hub must know before they use the weights."""
    pipeline = f"pipeline_tag: {task}\n" if task else ""
    (folder / CARD).write_text(
        f"""---
library_name: {library}
{pipeline}tags: [chest-x-ray, research-only]
---
# {title}

**Research use only.** Not a medical device; not for diagnosis, triage or any other clinical decision. Whoever shares
these weights must respect the data-use agreement of the studies they were trained on, and the licence of what they
were trained from.

{facts.strip()}
""",
        encoding="utf-8",
    )
