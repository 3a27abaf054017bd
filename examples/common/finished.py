"""A finished run, for those who attack it."""

from absl import flags

from common import attacked, pictures
from common.errors import UserError, users_mistakes
from common.rundir import RunDirectory, load_model, read_json
from keras_passport.cli import given

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A finished run of a trainer.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "As for the trainer.")
_IMAGES = flags.DEFINE_string(
    "images", None, "As for protect_model.py, for a run of it."
)
_OWN = flags.DEFINE_multi_string(
    "import", None, "As for protect_model.py, for a run of it."
)
_ANCESTOR = flags.DEFINE_string(
    "ancestor",
    None,
    "A network that the run's was made of and that attackers have, too, such "
    "as a public checkpoint, or another version of it: a .keras or .h5 file.",
)
flags.mark_flag_as_required("run_dir")


class FinishedRun:
    """A finished run of a trainer or of `protect_model.py`.

    Args:
        run_dir: its directory.
        data_dir: as for the program that made it.
        images: as for `protect_model.py`.
        ancestor: a file of a network that attackers have, too.

    Attributes:
        directory: its `RunDirectory`.
        given: all that `kp.evaluation.evaluate` needs of it, as keywords.
    """

    def __init__(
        self,
        run_dir: str,
        data_dir: str | None = None,
        images: str | None = None,
        ancestor: str | None = None,
    ):
        self.directory = RunDirectory(run_dir)
        config = read_json(self.directory.config)
        if config is None:
            raise UserError(f"--run_dir={self.directory.path} holds no run.")
        pictures.check_run(config)
        if not self.directory.protected.exists():
            raise UserError(
                f"--run_dir={self.directory.path} holds no finished run: "
                f"{self.directory.protected} is missing."
            )
        model = load_model(self.directory.protected)
        dataset = pictures.of_run(model, config, images, data_dir)
        self.given = attacked.given(self.directory, dataset)
        if ancestor:
            self.given["ancestor"] = load_model(ancestor)

    @classmethod
    def of_flags(cls) -> "FinishedRun":
        """The run that the user names."""
        with users_mistakes():
            given.import_modules(_OWN.value or [])
        return cls(
            _RUN_DIR.value, _DATA_DIR.value, _IMAGES.value, _ANCESTOR.value
        )
