"""The people that a run trains on, and those that it is judged on."""

from attfc.config import RunConfig, SourceConfig
from attfc.data import CombinedStore, Store, open_store
from attfc.data.people.kept_aside import split
from attfc.typing import Progress

__all__ = ["open_data", "open_held_out", "open_training_data"]


def open_training_data(config: RunConfig, progress: Progress | None = None) -> Store:
    """Open data.root with its edits, or data.sources as one store."""
    data = config.data
    sources = data.sources or [SourceConfig(root=data.root, edits=data.edits)]
    stores = [_open(config, source, data.index_cache, progress) for source in sources]
    if not data.sources:
        return stores[0]
    return CombinedStore(stores, merge_names=data.merge_names, weights=[source.weight for source in sources])


def open_held_out(config: RunConfig, progress: Progress | None = None) -> Store | None:
    """Open the people of eval.root, if there are any."""
    if config.eval.root is None:
        return None
    people = SourceConfig(root=config.eval.root, edits=config.eval.edits)
    return _open(config, people, config.eval.index_cache, progress)


def _open(config: RunConfig, source: SourceConfig, cache: str | None, progress: Progress | None) -> Store:
    label_source = config.data.label_source
    return open_store(source.root, edits=source.edits, label_source=label_source, cache=cache, progress=progress)


def open_data(config: RunConfig, progress: Progress | None = None) -> tuple[Store, Store | None]:
    """Open both; `eval.share` of the people of training are kept aside to be judged on."""
    store = open_training_data(config, progress)
    return split(store, config.eval.share) if config.eval.share else (store, open_held_out(config, progress))
