"""`attfc train`: from a folder of faces, or a preset, to a trained and judged model."""

import os
from pathlib import Path
from typing import Annotated

from typer import Exit

from attfc.commands.common import FolderOption, err, out, print_notes
from attfc.commands.options import WORDS
from attfc.commands.training_screen import RunScreen, print_choices
from attfc.errors import UserError

__all__ = ["train"]


def train(
    words: Annotated[list[str] | None, WORDS] = None, resume: FolderOption = None, print_config: bool = False
) -> None:
    """Train a face model, judge it on people kept aside, write the report.

    Args:
        words: data: a folder with one folder per person, a .rec, a packed set or synthetic:... Or a preset or a .yaml file.
            Then options such as epochs=5; attfc options lists them
        resume: folder of the run to continue; last: the newest run in the output folder
        print_config: print the whole configuration and exit
    """
    from attfc.config.arguments import read_words
    from attfc.config.describe import commented_yaml

    given = list(words or [])
    if resume is not None:
        resume, given = _resumed(resume, given)
        if print_config:
            from attfc.run.saved import saved_configuration

            out.print(commented_yaml(saved_configuration(resume, given)), end="", soft_wrap=True)
            return
    else:
        asked = read_words(given)
        config = asked.resolve()  # what cannot be is refused before anything is opened
        if print_config and not asked.automatic:
            print_notes(asked.notes)
            if config.start_from is not None:
                from attfc.run.automatic import with_start_weights

                config = with_start_weights(asked)[0].resolve()
            out.print(commented_yaml(config), end="", soft_wrap=True)
            return
    if os.environ.get("RANK", "0") == "0":  # said before torch is loaded, which takes seconds
        err.print(f"attfc: {f'opening {_data_of(given)}' if resume is None else f'resuming {resume}'} ...")

    began = False
    try:
        from attfc.distributed import leave_ranks
        from attfc.run.automatic import with_start_weights
        from attfc.run.build import new_run, settle
        from attfc.run.resuming import finished, resume_run
        from attfc.training.interruption import resume_command

        if print_config:
            settled = settle(with_start_weights(asked)[0])
            print_choices(settled.choices)
            print_notes(settled.notes)
            out.print(commented_yaml(settled.config), end="", soft_wrap=True)
            return
        with RunScreen() as screen:
            if resume is not None:
                run = screen.begin(lambda bar: resume_run(resume, given, bar), resumed=True)
                if not given and (said := finished(run)) is not None:
                    err.print(said)
                    leave_ranks()
                    return
            else:
                run = screen.begin(lambda bar: new_run(asked, bar))
            began = True
            run.train()
            screen.finish(run)
    except KeyboardInterrupt:
        # Training tells of itself: what is left are the report and the figures on the screen.
        resumes = f"stopped before the report was done; go on with: {resume_command(run.folder)}" if began else ""
        err.print(resumes or "stopped before the first step: nothing was saved")
        raise Exit(130) from None
    if run.interrupted:
        raise Exit(130)


def _resumed(resume: Path, words: list[str]) -> tuple[Path, list[str]]:
    """Return the folder of the run to go on with, and the overrides."""
    if resume == Path("last"):
        from attfc.training.run_folder import newest_run

        resume, words = newest_run(words), [word for word in words if not word.startswith("output=")]
    for word in words:
        if "=" not in word:
            raise UserError(
                f"--resume takes its configuration from {resume / 'config.yaml'}: leave out {word!r} (key=value may stay)"
            )
    return resume, words


def _data_of(words: list[str]) -> str:
    """Return the word that names the data or the preset, for the first line."""
    return next((word for word in words if "=" not in word or word.startswith("synthetic:")), "the data")
