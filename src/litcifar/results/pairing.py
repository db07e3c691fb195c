"""Two trained networks on the same images: McNemar's test of whether one is right more often."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from litcifar import checkpoints
from litcifar.checkpoints import Checkpoint
from litcifar.console import quiet
from litcifar.errors import CheckpointError
from litcifar.evaluation import evaluate_model
from litcifar.results.significance import LEVEL, binomial_p
from litcifar.run_folder import read_metrics


@dataclass(frozen=True)
class Paired:
    """How many images which of two networks, A and B, gets right. split: `test` or `val`."""

    split: str
    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def count(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def p(self) -> float:
        """Two-sided exact p-value of McNemar's test (McNemar 1947): of the images that one alone gets right."""
        return binomial_p(self.only_a, self.only_b)

    def words(self) -> str:
        """The counts, the p-value and what they tell."""
        acc_a, acc_b = ((self.both + only) / self.count for only in (self.only_a, self.only_b))
        counts = f"{self.only_a:,} only A right, {self.only_b:,} only B; p = {self.p:.2g}"
        real = self.p < 1 - LEVEL
        verdict = "the difference is real" if real else "no difference can be told from chance"
        return (
            f"A {100 * acc_a:.1f} %, B {100 * acc_b:.1f} % of {self.count:,} {self.split} images; {counts}: {verdict} "
            "between these two networks on such images. Whether one recipe is better than the other only several "
            "seeds of each can tell"
        )


def paired(folders: Sequence[Path], root: str | None = None, trust: Sequence[str] = ()) -> Paired:
    """Evaluates best.ckpt of two runs, A and B, on the test images; on the validation images if one was not tested.

    root: of the data, where they no longer lie where the runs read them. trust: as `checkpoints.config_of` takes it.

    Raises CheckpointError where the runs' images differ, and DataError.
    """
    quiet()
    first, second = (checkpoints.load(folder, trust) for folder in folders)
    if first.provenance.fingerprint != second.provenance.fingerprint:
        raise CheckpointError("the two runs read different images - give two runs on the same data")
    split = "test" if all((read_metrics(folder) or {}).get("test/acc") is not None for folder in folders) else "val"
    splits = [run.config.data.model_dump(include={"classes", "val_size", "split_seed"}) for run in (first, second)]
    if splits[0] != splits[1] and (split == "val" or splits[0]["classes"] != splits[1]["classes"]):
        raise CheckpointError(f"the two runs have different {split} images - give two runs with the same split")
    a, b = _right(first, split, root), _right(second, split, root)
    if len(a) != len(b):
        raise CheckpointError(f"one run limits its {split} images - give two runs that do not, or alike")
    counts = [int((a_right & b_right).sum()) for a_right, b_right in ((a, b), (a, ~b), (~a, b), (~a, ~b))]
    return Paired(split, *counts)


def _right(checkpoint: Checkpoint, split: str, root: str | None) -> Tensor:
    """Which images of the split the network gets right, bool [N]."""
    config = checkpoint.config
    where = {"mirrors": [], **({"root": root} if root else {})}  # nothing is downloaded for a comparison
    known_keys = {key: value for key, value in where.items() if hasattr(config.data, key)}
    config = config.model_copy(update={"data": config.data.model_copy(update=known_keys), "tta": "none"})
    data = checkpoints.data_of(config)
    data.prepare_data()
    data.setup()
    if data.fingerprint != checkpoint.provenance.fingerprint:
        raise CheckpointError("the images are not those that the runs read - give their folder with data.root=")
    result = evaluate_model(checkpoint.model, data, split, config, checkpoint.provenance.precision, "auto")
    return result.predictions_N == result.labels_N
