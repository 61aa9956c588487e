"""Links out of an image folder: read through in training, but packed into something that is passed on only when asked.

A folder from elsewhere may hold `Ann/passwd.jpg -> /etc/passwd`; a conversion would carry the file off. Links within the folder
are followed. List files name their images outright, wherever those are.
"""

from attfc.data.stores.folder import FolderStore
from attfc.data.stores.store import Store
from attfc.errors import UserError

__all__ = ["refuse_links_out"]


def refuse_links_out(store: Store) -> None:
    """Raise UserError if an image of a folder is reached by a link that leads out of it; of a view or several sets, of each.

    Cost: nothing where no image is reached by a link, else up to 20 us per image that is.
    """
    for below in (getattr(store, "store", None), *getattr(store, "stores", ())):  # of an edited or a combined store
        if below is not None:
            refuse_links_out(below)
    if isinstance(store, FolderStore) and (found := store.leads_out()) is not None:
        position, real = found
        raise UserError(
            f"{store.root}: {store.where(position)} is reached by a link that leads out of the folder, to {real}: give --follow-links "
            "(follow_links=True) to take whatever links lead to, or remove the link"
        )
