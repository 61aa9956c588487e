"""The options of a run, a section each: name, kind, bounds, default and meaning; those of heads, margins and banks stand with these (`kinds`).

`attfc options`, docs/options.md, the comments of `--print-config` and the suggestions for misspelled keys are all made from what stands here.
Components never see these objects: they are handed plain arguments.
"""

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.fields import FieldInfo

from attfc.config.kinds import (
    HOLDING_A_BATCH,
    IN_BATCH,
    KINDS,
    MEANINGS,
    Part,
    default_kind,
    model_of,
    sections_of,
    union_of,
    with_default_parts,
)
from attfc.config.option import NotNegative, Option, Positive, Section, Share, option
from attfc.config.sections.teacher import TeacherConfig

if TYPE_CHECKING:
    Head = Part
    Margin = Part
    Center = Part
    Negatives = Part
    Stored = Part
    InBatch = str
else:
    Head, Margin, Center, Negatives, Stored = map(union_of, ("head", "margin", "center", "negatives", "stored"))
    InBatch = get_args(IN_BATCH[0])[0]

__all__ = ["RunConfig", "Section", "SourceConfig", "described_fields", "models_of"]

BatchSize = Annotated[int, Field(ge=1, le=500_000)]
PixelValues = float | tuple[float, float, float]
STARTS = "start_from!=null"
EVALUATES = "eval.root!=null or eval.share!=0"


class SourceConfig(Section):
    """One of several training sets."""

    root: str = Field(description="as data.root")
    edits: list[str] = option(list, "as data.edits, for this source")
    weight: Annotated[float, Field(ge=0)] = option(1.0, "visits per image and epoch, on average")


class DataConfig(Section):
    """The training images."""

    root: str = option(
        "synthetic:identities=600,images=20,seed=0",
        "image folder, train.rec, NAME.lmdb, packed folder, list file, or synthetic:identities=N,images=M,seed=S",
        acts="data.sources=[]",
    )
    edits: list[str] = option(
        list,
        "edit lists of `attfc data clean` and `attfc data noise`, applied in this order",
        acts="data.sources=[]",
    )
    sources: list[SourceConfig] = option(
        list, "several sets as one, instead of data.root: [{root: A, weight: 2}, {root: B}]"
    )
    merge_names: bool = option(False, "treat equal names in several sources as one person", acts="data.sources!=[]")
    label_source: Literal["identities", "images"] = option(
        "identities",
        "source of the labels in an InsightFace .rec file: its identity records, or the header of each image; other sets ignore it",
    )
    index_cache: str | None = option(None, "folder for the list of images and people", null="the user's cache folder")
    workers: NotNegative = option(2, "processes that decode images; 0: the training process does it", unit="processes")
    decoded_cache_mib: NotNegative = option(
        0, "memory for decoded images, which speeds up all epochs but the first; 0: decode in every epoch", unit="MiB"
    )
    broken_limit: Share = option(0.01, "largest share of broken images; above it the run stops")
    sampling_mix: Share | None = option(
        None,
        "share of each batch that is drawn by person, everyone equally often; the rest is drawn by image",
        null="head.enter_first with head.kind=dcp, else 0",
    )
    sampling: Literal["each_once", "with_replacement"] = option(
        "each_once", "whether each image comes once per epoch, or images are drawn with replacement"
    )
    licence: str = option("unknown", "licence of the training data, written into the exported model")


class AugmentConfig(Section):
    """Random changes of the training images, new in each epoch."""

    flip: Share = option(0.5, "probability of a mirror image")
    crop_scale: tuple[float, float] | None = option(
        None, "smallest and largest share of the area that a random crop keeps, such as [0.8, 1.0]", null="no crop"
    )
    brightness: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, "pixels are multiplied by a random number from 1 - b to 1 + b"
    )
    contrast: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, "distances from the image's mean grey are multiplied by a random number from 1 - c to 1 + c"
    )
    saturation: Annotated[float, Field(ge=0, le=1)] = option(
        0.0, "distances of pixels from their own grey are multiplied by a random number from 1 - s to 1 + s"
    )
    blur: Share = option(0.0, "probability of a Gaussian blur")
    low_resolution: Share = option(
        0.0, "probability that an image is shrunk to 0.2 to 1 of its side and enlarged again; AdaFace has 0.2"
    )


class BackboneConfig(Section):
    """The network that turns an image into an embedding."""

    name: str = option("r50", "name of the network: `attfc backbones` lists them")
    embedding_size: Positive = option(512, "numbers per embedding")
    image_size: Positive | None = option(
        None,
        "height and width of the input; images are scaled to it",
        unit="pixels",
        null="the size that the network is made for",
    )
    colour_order: Literal["RGB", "BGR"] = option(
        "RGB", "order of the channels that the network wants; start_from takes it from the weights"
    )
    mean: PixelValues = option(
        127.5,
        "(x - mean) / std of pixel values 0 to 255, one number or one per channel; start_from takes it from the weights",
    )
    std: PixelValues = option(127.5, "divisor of pixel values, above 0; see backbone.mean")
    options: dict[str, Any] = option(
        dict, "further options of the network, such as {dropout: 0.1} or {checkpointing: true}, which saves memory"
    )


class DistributedConfig(Section):
    """For several processes, started by torchrun; one process ignores it."""

    rows: Literal["sharded", "replicated"] = option(
        "sharded",
        "trained centers: a part in each process (sharded), or all in each (replicated)",
        acts="head.kind=full_fc",
    )
    sync_batch_norm: bool = option(
        False, "compute the statistics of BatchNorm over the whole batch, not over each process's part"
    )
    timeout_seconds: Annotated[float, Field(gt=0)] = option(
        600.0, "longest wait for another process, including the scoring of an evaluation", unit="seconds"
    )


class FinetuneConfig(Section):
    """What is kept of the start weights (start_from)."""

    batch_norm: Literal["kept", "adapted"] = option(
        "kept", "statistics of BatchNorm: kept from the start weights, or adapted to the new images", acts=STARTS
    )
    trunk_rate: Share = option(
        1.0, "share of the learning rate for all layers before the network's last matrix; 0 freezes them: less time and memory", acts=STARTS
    )  # fmt: skip
    rows: Literal["by_name", "fresh"] = option(
        "by_name", "class centers: those of the start run for people of the same name, or all new", acts=STARTS
    )


class KeyEncoderConfig(Section):
    """The key encoder, a slowly following copy of the network that embeds the keys: further images of the same person."""

    momentum: Share = option(
        0.0, "share of its old weights that the copy keeps in each step; 0: the copy equals the network"
    )
    momentum_schedule: Literal["constant", "ramp"] = option(
        "constant", "keep the momentum constant, or let it rise from 0.1 to its value (ramp)"
    )
    batch_norm: Literal["batch", "averaged"] = option(
        "batch", "statistics of the copy's BatchNorm: from the batch of keys, or averaged over steps"
    )
    distinct_keys: bool = option(
        True, "choose keys that differ from the query and from each other, where the person has enough images"
    )


class OptimizerConfig(Section):
    """How a gradient changes the weights."""

    name: Literal["sgd", "adamw"] = option("sgd", "SGD with momentum, or AdamW")
    learning_rate: Annotated[float, Field(gt=0)] = option(
        0.1,
        "largest learning rate; SGD: 0.1 for 512 images per step, or for 128 with the tiny networks; AdamW: a hundredth of that",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = option(
        0.9, "share of the last step's direction that the next one keeps", acts="optimizer.name=sgd"
    )
    weight_decay: Annotated[float, Field(ge=0)] = option(5e-4, "strength of the pull of all weights towards 0")
    decay_norms_and_biases: bool = option(
        True, "apply it to biases and normalization layers too, as arcface_torch does"
    )
    head_learning_rate_scale: Annotated[float, Field(gt=0)] = option(
        1.0,
        "learning rate of the trained centers as a multiple of the network's",
        acts="head.kind=full_fc|partial_fc or head.kind=attfc and negatives.kind=center_table and negatives.trained!=0",
    )
    clip: Annotated[float, Field(ge=0)] = option(5.0, "largest norm of the network's gradient; 0: no limit")
    accumulation: Positive = option(
        1, "batches per step, as if they were one larger batch (BatchNorm still sees each one alone)", unit="batches"
    )


class ScheduleConfig(Section):
    """How long to train, and how the learning rate falls."""

    name: Literal["cosine", "polynomial", "constant"] = option("cosine", "curve of the learning rate after the warm-up")
    epochs: Annotated[float, Field(gt=0)] = option(20, "passes over the training set", unit="epochs")
    max_steps: Positive | None = option(
        None, "largest number of steps; the learning rate ends there too", unit="steps", null="no limit"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = option(
        0.0, "time in which the learning rate rises from near 0", unit="epochs"
    )
    power: Annotated[float, Field(gt=0)] = option(
        2.0, "power of the curve: 1 is a straight line, 2 falls faster at first", acts="schedule.name=polynomial"
    )
    final: Share = option(0.0, "last learning rate as a share of the largest", acts="schedule.name=cosine|polynomial")


class PrecisionConfig(Section):
    """How numbers are stored while the network computes."""

    amp: Literal["auto", "none", "bfloat16", "float16"] = option(
        "auto", "mixed precision; auto: bfloat16 where the device is fast at it, else float16 on CUDA, else none"
    )
    channels_last: bool = option(True, "memory layout that makes convolutions faster")
    tuned: bool = option(
        True,
        "faster training on a CUDA GPU: TF32 for float32 products, and cuDNN picks its fastest convolutions; false: TF32 in convolutions only",
    )
    compile: bool = option(False, "compile the network with torch.compile: takes minutes, then steps are faster")


class EvalConfig(Section):
    """Evaluation on people who are not trained on."""

    root: str | None = option(
        None, "people to evaluate on, in any form that data.root takes", null="nobody, or those of eval.share"
    )
    share: Share = option(
        0.0,
        "share of the people with two or more images to keep out of training, chosen by a hash of their names; 0: nobody",
    )
    edits: list[str] = option(list, "edit lists for eval.root, applied in this order", acts="eval.root!=null")
    index_cache: str | None = option(
        None,
        "folder for the list of images and people of eval.root",
        null="the user's cache folder",
        acts="eval.root!=null",
    )
    pairs: str | None = option(None, "pairs file in the form of LFW's pairs.txt", null="generate pairs", acts=EVALUATES)
    generated_pairs: Annotated[int, Field(ge=4)] = option(
        6000,
        "pairs to generate, half of them mated (two images of one person)",
        unit="pairs",
        acts="eval.pairs=null and eval.root!=null or eval.pairs=null and eval.share!=0",
    )
    also: str | None = option(
        None,
        "another set, a store or .bin, on which the start_from model and the new one are compared at the end",
        null="compare on the evaluation set only",
        acts=f"{STARTS} and eval.root!=null or {STARTS} and eval.share!=0",
    )
    every: NotNegative = option(
        0, "steps between evaluations during training; 0: only at the end", unit="steps", acts=EVALUATES
    )
    best_by: Literal["accuracy", "auc", "tar_at_far_0.01", "tar_at_far_0.001", "rank_one"] = option(
        "accuracy", "metric by which the model in best/ is chosen; larger is better", acts=EVALUATES
    )
    all_pairs: bool = option(True, "also compare every two images, which low false accept rates need", acts=EVALUATES)
    flip: bool = option(True, "add the embedding of the mirror image", acts=EVALUATES)
    batch_size: BatchSize = option(256, "images per forward pass of the evaluation", unit="images", acts=EVALUATES)
    look_alikes: NotNegative = option(
        20, "longest search for evaluation people who look like training people; 0: none", unit="s", acts=EVALUATES
    )


class CheckpointConfig(Section):
    """When the whole state is saved, so that `attfc train --resume` can continue."""

    every: NotNegative = option(500, "steps between checkpoints; 0: only at the end and when interrupted", unit="steps")
    keep: Positive = option(2, "how many of the newest checkpoints to keep", unit="checkpoints")


class ReportConfig(Section):
    """The HTML report at the end."""

    write: bool = option(True, "write report.html into the run's folder")
    pictures: bool = option(
        False, "show faces of the hardest pairs in it; only if you may show these people", acts="report.write=true"
    )


class LogConfig(Section):
    """What is recorded while the run trains."""

    every: Positive = option(10, "steps between lines of metrics.jsonl", unit="steps")
    tensorboard: bool = option(True, "also write files for TensorBoard")
    wandb: bool = option(False, "send numbers and configuration to Weights & Biases (extra attfc[wandb])")
    mlflow: bool = option(False, "send numbers and configuration to MLflow (extra attfc[mlflow])")


class RunConfig(Section):
    """One training run."""

    format: Literal[2] = option(2, "version of the option names; a file without it is read as one of attfc 0.1")
    name: str = option(
        "run", "name of the run; its folder is NAME-001 or the next free number", min_length=1, max_length=100
    )
    profile: Literal["published"] | None = option(
        None, "published: AttFC as in the paper", null="the defaults that docs/study.md found best"
    )
    output: str = option("runs", "folder in which the run's own folder is made")
    seed: NotNegative = option(
        0,
        "seed for everything random; equal seeds give equal runs on one machine (on a GPU only nearly: see precision.tuned)",
        lt=10**18,
    )
    device: str = option(
        "auto", "where to train: cpu, cuda, cuda:1 or mps; auto: the accelerator if there is one, else the processor"
    )
    threads: Positive | None = option(
        None, "processor threads of the training process", unit="threads", null="torch's default"
    )
    batch_size: BatchSize = option(128, "images per batch, over all processes", unit="images")
    start_from: str | None = option(
        None,
        "weights to start from: a run, a model folder, .safetensors, .pt or .pth; they set network, input size and colours",
        null="fresh weights",
    )
    start_licence: str = option(
        "unknown", "licence of the start_from weights, if they do not state one", acts="start_from!=null"
    )
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    backbone: BackboneConfig = Field(default_factory=BackboneConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    head: Head = Field(default_factory=model_of("head", default_kind("head")))
    margin: Margin = Field(default_factory=model_of("margin", default_kind("margin")))
    center: Center | None = None
    negatives: Negatives | None = None
    stored: Stored | None = None
    in_batch: InBatch | None = None
    key_encoder: KeyEncoderConfig | None = None
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    distributed: DistributedConfig = Field(default_factory=DistributedConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    @model_serializer(mode="wrap")
    def _with_its_parts(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the sections that the head is not put together from."""
        values = write(self)
        absent = {"center", "negatives", "stored", "in_batch", "key_encoder"}.difference(sections_of(values))
        return {key: value for key, value in values.items() if key not in absent}

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, values: Any) -> Any:
        """Put the default parts of the head beside it."""
        return with_default_parts(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size={self.batch_size}: BatchNorm needs at least 2 images per process; set batch_size to 2 or more"
            )
        if self.eval.share and self.eval.root is not None:
            raise ValueError(
                f"eval.share={self.eval.share:g} keeps people of the training set aside, and eval.root={self.eval.root} names others: "
                "set one of them"
            )
        if self.teacher.model is not None and self.teacher.loss is None and self.teacher.centers is None:
            raise ValueError(
                "teacher.loss=null and teacher.centers=null: the teacher would teach nothing; set one of them, or leave teacher out"
            )
        if self.data.sources and self.data.edits:
            raise ValueError("data.edits is about one set and data.sources are several: give each source its own edits")
        if self.data.merge_names and not self.data.sources:
            raise ValueError(
                "data.merge_names joins data.sources, and there are none: set data.sources=[{root: A}, {root: B}]"
            )
        for section in KINDS:
            part = getattr(self, section)
            place, folder = (part and part.get(name) for name in ("place", "folder"))
            if (place == "file") != (folder is not None):
                raise ValueError(
                    f"{section}.place={place} with {section}.folder={folder}: "
                    f"{section}.place=file needs {section}.folder, a folder on a fast disk, and nothing else uses it"
                )
            if part and None not in (part.get("share"), part.get("count")):
                raise ValueError(
                    f"{section}.share={part.get('share'):g} and {section}.count={part.get('count')}: give one of them"
                )
        return self


def models_of(section: str) -> dict[str, type[Section]]:
    """Return the models of a section by the kind that each is of, "" where there are no kinds; nothing where it is not a section."""
    if section in KINDS:
        return {kind: model_of(section, kind) for kind in KINDS[section]}
    field = RunConfig.model_fields.get(section)
    model = KeyEncoderConfig if section == "key_encoder" else field and field.annotation
    return {"": model} if isinstance(model, type) and issubclass(model, Section) else {}


def _kind_of(section: str) -> FieldInfo:
    """Describe the kind of a section, of which each model knows its own alone."""
    null = "the negatives say it" if section == "stored" else None
    kinds: Any = Literal[(*KINDS[section], *[None] * bool(null))]
    about: Any = Option(MEANINGS[section], null=null)
    default = None if null else default_kind(section)
    return FieldInfo(annotation=kinds, default=default, json_schema_extra={"option": about})


@cache
def described_fields() -> dict[str, list[tuple[str, FieldInfo]]]:
    """Return every option by its dotted key, and every section: the kinds that have it ("" for all), each with its description."""
    found: dict[str, list[tuple[str, FieldInfo]]] = {}
    for section, field in RunConfig.model_fields.items():
        if section in KINDS:
            found[f"{section}.kind"] = [("", _kind_of(section))]
        for kind, model in models_of(section).items():
            apart = {"kind"} if kind else set()
            if section == "stored" and kind not in HOLDING_A_BATCH:
                apart |= {"share", "count", "trained"}  # about negatives, and this one gives none
            for name, each in model.model_fields.items():
                if name not in apart:
                    found.setdefault(f"{section}.{name}", []).append((kind, each))
        found[section] = [("", FieldInfo.from_annotated_attribute(*IN_BATCH) if section == "in_batch" else field)]
    return found
