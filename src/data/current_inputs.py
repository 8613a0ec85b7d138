"""What the tasks of a configuration read, as it is now: to record it, and to compare it with what was recorded."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from src.activation_spec import UNKNOWN
from src.data.fold_table import FoldTable, list_items, read_fold
from src.data.images.source import open_images
from src.data.listing import list_dataset
from src.data.slides.annotation_files import find_annotation
from src.data.slides.patching import read_patch_file
from src.data.slides.slide_files import find_slide, list_slides
from src.data.strata import strata_input
from src.files import digest_text, list_files
from src.inputs import Input, file_input, large_file_input, value_input
from src.models.backbones.spec import describe_weights
from src.stores.activations.index import digest_coords


class CurrentInputs:
    """Finds what is read where a configuration says that it is.

    Args:
        cfg: the configuration: `dataset`, `backbone`, `paths`, `splits`, `repeat`, `fold`.
        fold: another cross-validation fold than the configuration's.
    """

    def __init__(self, cfg: Any, fold: int | str | None = None) -> None:
        self._cfg, self._dataset, self._other_fold = cfg, cfg.dataset, fold

    def read(self, *whats: str, recorded: Iterable[Input] = ()) -> list[Input]:
        """Describes inputs.

        Args:
            *whats: kinds, with the parts of the split that are meant: what `FoldData.inputs` knows; `all cases`, of the
                csv alone; `slides <parts>`, `patches <parts>` (of `all` those of the folders; `cut` slides are those
                with patches), `images <parts>`, `outlines <parts>`; `listing`, what a data set is found to hold;
                `strata <parts>`, the columns of selection.adjust_for;
                `weights`, `generator`; `file`, a file at its recorded place.
            recorded: what a run recorded; large files of the same size and time are not read again.

        Raises:
            FileNotFoundError: when something is not there.
            ValueError: when something is wrong with it.
        """
        recorded = list(recorded)
        return [one for what in whats for one in self._read(what, recorded)]

    def _read(self, what: str, recorded: Sequence[Input]) -> list[Input]:
        kind, _, parts = what.partition(" ")
        if kind in ("activations", "coords"):
            return self._fold.inputs(what)
        if kind in ("split", "cases", "labels", "columns", "classes"):
            return [self._table.input(what)]
        readers = {"all": self._all, "slides": self._slides, "patches": self._patches, "outlines": self._outlines}
        readers |= {
            "images": self._images,
            "weights": self._weights,
            "generator": self._generator,
            "listing": self._listing,
            "strata": self._strata,
            "file": self._file,
        }
        if kind not in readers:
            raise ValueError(f"Expected an input among {sorted(readers)}, got {what!r}: give overwrite=true.")
        return readers[kind](what, parts, recorded)

    @property
    def _number(self) -> int | str:
        return self._cfg.fold if self._other_fold is None else self._other_fold

    @cached_property
    def _fold(self) -> Any:
        from src.data.fold import open_fold  # with torch; most starts compare without it

        return open_fold(self._cfg, self._number, checks_spec=False)  # the run that made them is looked at itself

    @cached_property
    def _table(self) -> FoldTable:
        return read_fold(self._cfg, self._number, ())

    def _all(self, what: str, *_: object) -> list[Input]:
        content = sorted((item.item_id, item.case_id) for item in list_items(self._dataset, needs_target=False))
        return [file_input(what, self._dataset.metadata_csv, digest_text(repr(content)))]

    def _slides(self, what: str, parts: str, recorded: Sequence[Input]) -> list[Input]:
        folder = self._folder("slides_dir")
        if parts == "all":
            found = list(list_slides(folder).values())
        else:
            item_ids = (
                [path.stem for path in self._patch_files("all")] if parts == "cut" else self._table.item_ids(parts)
            )
            found = []
            for item_id in item_ids:
                with suppress(FileNotFoundError):
                    found.append(find_slide(folder, item_id))
        return [large_file_input(what, path, recorded) for path in found]

    def _images(self, what: str, parts: str, _: Sequence[Input]) -> list[Input]:
        # Of many small files the sizes and times: reading them all takes as long as embedding them.
        source = open_images(self._dataset)
        item_ids = source.item_ids if parts == "all" else self._table.item_ids(parts)
        identities = [(item_id, *source.identity(item_id)) for item_id in item_ids]
        return [Input(what, "", str(self._folder("images_dir")), 0, 0, digest_text(json.dumps(identities)))]

    def _patches(self, what: str, parts: str, _: Sequence[Input]) -> list[Input]:
        inputs = []
        for path in self._patch_files(parts):
            coords, size_level0, side = read_patch_file(path)
            digest = digest_text(f"{digest_coords(coords.astype(np.int32))} {size_level0} {side}")
            inputs.append(file_input(what, path, digest, path.name))
        return inputs

    def _outlines(self, what: str, parts: str, _: Sequence[Input]) -> list[Input]:
        folder = self._folder("annotations_dir")
        found = (find_annotation(folder, item_id) for item_id in self._table.item_ids(parts))
        # One csv of boxes may be that of all slides.
        return [file_input(what, path, name=path.name) for path in dict.fromkeys(found) if path is not None]

    def _strata(self, what: str, parts: str, _: Sequence[Input]) -> list[Input]:
        columns, item_ids = list(self._cfg.selection.adjust_for), self._table.item_ids(parts)
        return [strata_input(what, self._dataset.metadata_csv, columns, item_ids)]

    def _weights(self, what: str, *_: object) -> list[Input]:
        if (weights := describe_weights(self._cfg.backbone)) == UNKNOWN:
            raise FileNotFoundError(f"no weights at {self._cfg.backbone.checkpoint}")
        return [value_input(what, weights)]

    def _generator(self, what: str, *_: object) -> list[Input]:
        generator = self._dataset.get("generator")
        if generator is None:
            return [value_input(what, None)]
        # What is null draws nothing else than before there was such a key.
        given = {key: value for key, value in generator.items() if value is not None}
        return [value_input(what, json.dumps(given, sort_keys=True))]

    def _listing(self, what: str, *_: object) -> list[Input]:
        return [value_input(what, digest_text(repr(list_dataset(self._dataset))))]

    def _folder(self, key: str) -> Path:
        if self._dataset[key] is None:
            raise FileNotFoundError(f"dataset.{key} names no folder")
        return Path(self._dataset[key])

    def _patch_files(self, parts: str) -> list[Path]:
        folder = self._folder("patches_dir") / "patches"
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
        if parts == "all":
            return list_files(folder, "*.h5")
        paths = (folder / f"{item_id}.h5" for item_id in self._table.item_ids(parts))
        return [path for path in paths if path.is_file()]

    def _file(self, what: str, _: str, recorded: Sequence[Input]) -> list[Input]:
        present = (one for one in recorded if one.what == what and Path(one.path).is_file())
        return [file_input(what, one.path, name=one.name) for one in present]
