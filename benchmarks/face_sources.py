"""Writes the lists that the studies of real faces train and test on, from a folder with train/ and val/: give its output as --faces.

    python benchmarks/face_sources.py ../shared/faces112 ~/.cache/attfc/sources
    attfc study run benchmarks/studies/faces_tail.yaml --faces ~/.cache/attfc/sources

`train.lst` and `val.lst` hold everything. `lfw.lst` and `web.lst` hold the two sources of train/ apart: images of Labeled Faces in the Wild are named
`Person_Name_0001.jpg`, those of the web collections `0001.jpg`. A person is in one of them only, or the script stops. `flip.lst` holds the images of
train/, 4 of 10 of them under the name of another of its people. `fold0.lst` to `fold17.lst` cross-validate over the people of Labeled Faces in the
Wild, those of val/ too, three times: `fold0_val.lst` has a sixth of them, as `fold6_val.lst` and `fold12_val.lst` have, and `fold0.lst` all others
and the web collections.
"""

import argparse
import random
from pathlib import Path

from attfc.errors import UserError

FOLDS, SEEDS = 6, 18


def main() -> None:
    """Write the lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    train, val = images_of(arguments.faces / "train"), images_of(arguments.faces / "val")
    from_lfw = [image.name.startswith(image.parent.name) for image in train]
    lfw = [image for image, chosen in zip(train, from_lfw, strict=True) if chosen]
    web = [image for image, chosen in zip(train, from_lfw, strict=True) if not chosen]
    both = {image.parent for image in lfw} & {image.parent for image in web}
    if both:
        raise UserError(
            f"{arguments.faces}: {min(both).name} is in both sources: a test across them would see its people"
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    flipped = dict(zip(train, flipped_names([image.parent.name for image in train]), strict=True))
    lists = {"train": train, "val": val, "lfw": lfw, "web": web, "flip": train}
    people = sorted({image.parent.name for image in [*lfw, *val]})
    random.Random(0).shuffle(people)
    for seed in range(SEEDS):
        aside = {*people[seed % FOLDS :: FOLDS]}
        lists[f"fold{seed}"] = [image for image in [*train, *val] if image.parent.name not in aside]
        lists[f"fold{seed}_val"] = [image for image in [*lfw, *val] if image.parent.name in aside]
    for name, images in lists.items():
        names = [flipped[image] if name == "flip" else image.parent.name for image in images]
        lines = "".join(f"{image}\t{name}\n" for image, name in zip(images, names, strict=True))
        (arguments.output / f"{name}.lst").write_text(lines, encoding="utf-8")
        print(f"{name}.lst: {len(set(names)):,} people, {len(images):,} images")


def flipped_names(names: list[str], share: float = 0.4) -> list[str]:
    """Give that share of the images the name of another person at random; a function of the names alone."""
    rng, people = random.Random(0), sorted(set(names))
    found = []
    for name in names:
        other = people[rng.randrange(len(people) - 1)]
        found.append(name if rng.random() >= share else other if other != name else people[-1])
    return found


def images_of(folder: Path) -> list[Path]:
    """Every image of a folder of people, in order."""
    images = sorted(folder.resolve().glob("*/*.jpg"))
    if not images:
        raise UserError(f"{folder} holds no <person>/<image>.jpg: give the folder with train/ and val/")
    return images


if __name__ == "__main__":
    main()
