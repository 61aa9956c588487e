"""The options of a run, a section each: name, kind, bounds, default and meaning, in this one place.

`attfc options`, docs/options.md, the comments of `--print-config` and the suggestions for misspelled keys are all made from what stands here.
Components never see these objects: build.py hands them plain arguments.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["RunConfig", "Section", "SourceConfig"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """Base of all sections: unknown keys are an error, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, coerce_numbers_to_str=True)


class SourceConfig(Section):
    """One of several training sets."""

    root: str = Field(description="as data.root")
    edits: list[str] = Field(default_factory=list, description="as data.edits, for this source")
    weight: Annotated[float, Field(ge=0)] = Field(1.0, description="visits of each of its images an epoch, on average")


class DataConfig(Section):
    """Where the training images come from."""

    root: str = Field(
        "synthetic:identities=600,images=20,seed=0",
        description="image folder, train.rec, packed folder, list file, or synthetic:identities=N,images=M,seed=S",
    )
    edits: list[str] = Field(
        default_factory=list, description="edit lists of `attfc data clean` and `noise`, applied in this order"
    )
    sources: list[SourceConfig] = Field(
        default_factory=list, description="several sets as one, instead of root: [{root: A, weight: 2}, {root: B}]"
    )
    merge_names: bool = Field(False, description="sources: identities of equal name are one person")
    label_source: Literal["identities", "images"] = Field(
        "identities", description="RecordIO of InsightFace: labels of the identity records, or each image's own"
    )
    index_cache: str | None = Field(None, description="folder for the identity index; default beside the data")
    workers: NotNegative = Field(2, description="decoding processes; 0 decodes in the training process")
    decoded_cache_mib: NotNegative = Field(
        0, description="MiB of memory to keep decoded images in; 0 decodes every time"
    )
    broken_limit: Share = Field(0.01, description="share of broken images above which the run stops")
    sampling_mix: Share | None = Field(
        None,
        description="share of each batch drawn by identity, evenly, and the rest by image; default: head.enter_first with dcp, else 0",
    )
    licence: str = Field("unknown", description="licence of the training data, written into the exported model")


class AugmentConfig(Section):
    """Random changes of each image, batched on the training device."""

    flip: Share = 0.5
    crop_scale: tuple[float, float] | None = Field(
        None, description="area share range of the random resized crop, e.g. [0.8, 1.0]"
    )
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    blur: Share = Field(0.0, description="share of images blurred")


class BackboneConfig(Section):
    """The network."""

    name: str = "r50"
    embedding_size: Positive = 512
    image_size: Positive | None = Field(None, description="input side in pixels; default: the network's own")
    options: dict[str, Any] = Field(
        default_factory=dict, description="further options of the network, e.g. {dropout: 0.1}"
    )


class KeysConfig(Section):
    """What the attention loader yields beside the query."""

    per_query: int = Field(2, description="K, keys of the query's identity")
    distinct: bool = Field(True, description="keys differ from the query and from each other where the identity allows")
    sampling: Literal["each_once", "with_replacement"] = Field(
        "each_once", description="how an epoch visits the images"
    )


class KeyEncoderConfig(Section):
    """The slow copy of the backbone."""

    momentum: Share = Field(0.999, description="share of the old weights kept at a step")
    momentum_schedule: Literal["constant", "ramp"] = "constant"
    batch_norm: Literal["batch", "averaged"] = "batch"


class AttentionConfig(Section):
    """How keys become a generative class center."""

    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="in units of cosine")
    include_stored_center: bool = Field(False, description="the identity's stored row joins the keys as a candidate")


class CenterConfig(Section):
    """What a class center is made from."""

    blend: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of the stored row in the new center")
    source: Literal["keys", "query", "batch", "others"] = Field(
        "keys",
        description="query: no key passes; the query's own embedding refreshes the stored row. batch: none either; queries come in pairs of "
        "one identity, each the other's key. others: none either; the mean of the last embeddings of all other images of the identity, "
        "remembered where center.table says (2 bytes a number and image, 4 a number and identity)",
    )
    table: Literal["none", "device", "host", "file"] = Field(
        "none",
        description="where a table with the latest center of every identity lives (2 bytes a number), for a container with fewer slots than "
        "identities; none: the container's alone",
    )
    table_folder: str | None = Field(None, description="table=file: a folder on a fast disk")


class ContainerConfig(Section):
    """The dynamic class container."""

    ratio: Annotated[float, Field(gt=0)] | None = Field(0.1, description="slots / identities; slots overrides it")
    slots: Positive | None = None
    policy: Literal["fifo", "unique"] = "fifo"
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    initial: Literal["empty", "random"] = "empty"


class NegativesConfig(Section):
    """Which centers push away."""

    in_batch: bool = Field(False, description="the batch's own centers are negatives too")
    in_batch_gradient: bool = Field(
        False,
        description="attfc: the batch's own centers, as negatives, push back on the embeddings that they are made of; says nothing without "
        "negatives.in_batch, or with center.source=keys, which carry no gradient",
    )
    source: Literal["container", "table"] = Field(
        "container",
        description="attfc: the most recent centers, or, where there is a table of centers (center.table), as many of its rows drawn at random "
        "in each step",
    )


class MarginConfig(Section):
    """The margin on the positive cosine."""

    name: Literal["arcface", "cosface", "combined", "adaface"] = "cosface"
    scale: Annotated[float, Field(gt=0)] = 64.0
    margin: float = Field(0.4, description="radians for arcface, cosine for cosface and adaface; unused by combined")
    m1: Annotated[float, Field(gt=0)] = Field(1.0, description="combined: factor of the angle")
    m2: float = Field(0.0, description="combined: added angle, radians")
    m3: float = Field(0.4, description="combined: subtracted cosine")
    h: Annotated[float, Field(gt=0)] = Field(0.333, description="adaface: concentration of the norm")
    gradient: Literal["exact", "straight_through"] = "exact"
    beyond_pi: Literal["linear", "wrap"] = Field(
        "linear", description="arcface, combined: where angle + margin exceeds pi, go on in a straight line or wrap"
    )


class HeadConfig(Section):
    """What turns embeddings and labels into a loss."""

    name: Literal["attfc", "full_fc", "partial_fc", "dcq", "dcp"] = "attfc"
    interclass_filtering_threshold: Annotated[float, Field(gt=-1, le=1)] | None = Field(
        None, description="negatives with a larger cosine are dropped"
    )
    filtering: Literal["drop", "zero"] = "drop"
    block_mib: Annotated[float, Field(gt=0)] = Field(32.0, description="working memory of the streaming pass, MiB")
    sample_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="partial_fc: share of the identities in a step"
    )
    rows: Literal["device", "host", "file"] = Field(
        "device",
        description="full_fc, partial_fc: where rows and momentum live; host and file bring a step's rows to the device",
    )
    rows_folder: str | None = Field(
        None, description="rows=file: a folder on a fast disk, for the rows and their momentum"
    )
    enter_first: Share = Field(
        2 / 3, description="dcp: share of the batch, from its start, whose keys enter the pool before the loss"
    )
    hardest_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="dcp: factor of the loss of samples whose identity is not in the pool"
    )


class DistributedConfig(Section):
    """Several processes (torchrun); alone, nothing of it is used."""

    rows: Literal["sharded", "replicated"] = Field(
        "sharded",
        description="full_fc: each rank has a block of the rows (model parallel), or all of them (data parallel)",
    )
    sync_batch_norm: bool = Field(
        False, description="BatchNorm over the batch of all ranks, not over each rank's share"
    )
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        600.0, description="longest wait for another rank, the scoring of an evaluation included"
    )


class OptimizerConfig(Section):
    """Descent."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    decay_norms_and_biases: bool = True
    head_learning_rate_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="learning rate of the head's rows as a multiple of the network's; for heads with rows to learn"
    )
    clip: Annotated[float, Field(ge=0)] = Field(5.0, description="largest gradient norm of the backbone; 0 is off")
    accumulation: Positive = Field(1, description="batches an optimizer step")


class ScheduleConfig(Section):
    """How long, and how fast."""

    name: Literal["cosine", "polynomial", "constant"] = "cosine"
    epochs: Annotated[float, Field(gt=0)] = 20
    max_steps: Positive | None = Field(
        None, description="stop here even if epochs are left; the schedule ends here too"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    power: Annotated[float, Field(gt=0)] = Field(2.0, description="of the polynomial schedule")
    final: Share = Field(0.0, description="last learning rate, as a share of the first")


class PrecisionConfig(Section):
    """Numbers and memory layout."""

    amp: Literal["auto", "none", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the device multiplies it fast, else float16 on CUDA, else none"
    )
    channels_last: bool = True
    compile: bool = False


class EvalConfig(Section):
    """Evaluation on identities that were never trained on."""

    root: str | None = Field(None, description="people never trained on, as data.root; default: no evaluation")
    share: Share = Field(
        0.0,
        description="share of the training set's people of two or more images that are kept aside for the evaluation: whole people, chosen by "
        "the hash of their names; 0: nobody",
    )
    edits: list[str] = Field(default_factory=list, description="edit lists, applied in this order")
    index_cache: str | None = None
    pairs: str | None = Field(None, description="pairs file in the LFW form; default: generated pairs")
    generated_pairs: Annotated[int, Field(ge=4)] = 6000
    every: NotNegative = Field(0, description="steps between evaluations during training; 0 only at the end")
    best_by: Literal["accuracy", "auc", "tar_at_far_0.01", "tar_at_far_0.001", "rank_one"] = "accuracy"
    all_pairs: bool = Field(True, description="also score every pair of images of the store, for low FARs")
    flip: bool = True
    batch_size: Positive = 256


class CheckpointConfig(Section):
    """When the whole state is saved."""

    every: NotNegative = Field(500, description="steps; 0 saves only at the end and when interrupted")
    keep: Positive = 2


class ReportConfig(Section):
    """The HTML report."""

    write: bool = True
    pictures: bool = Field(False, description="embed faces of the hardest pairs; only for stores you may show")


class LogConfig(Section):
    """metrics.jsonl, TensorBoard and the progress line."""

    every: Positive = Field(10, description="steps")
    tensorboard: bool = True
    wandb: bool = Field(False, description="send numbers and configuration to Weights & Biases (extra attfc[wandb])")
    mlflow: bool = Field(False, description="send numbers and configuration to MLflow (extra attfc[mlflow])")


class RunConfig(Section):
    """One training run."""

    name: str = Field("run", min_length=1, max_length=100)
    profile: Literal["published", "tuned"] = "tuned"
    output: str = Field("runs", description="the run's folder is made in here")
    seed: NotNegative = 0
    device: str = Field("auto", description="auto: the accelerator if there is one, else the processor")
    threads: Positive | None = Field(
        None, description="processor threads of the training process; default: torch's own"
    )
    batch_size: Positive = Field(128, description="samples of a batch, over all ranks")
    start_from: str | None = Field(
        None,
        description="a run's folder: its encoders begin this run; head, optimizer and position in the data are new",
    )
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    backbone: BackboneConfig = Field(default_factory=BackboneConfig)
    head: HeadConfig = Field(default_factory=HeadConfig)
    margin: MarginConfig = Field(default_factory=MarginConfig)
    keys: KeysConfig = Field(default_factory=KeysConfig)
    key_encoder: KeyEncoderConfig = Field(default_factory=KeyEncoderConfig)
    attention: AttentionConfig = Field(default_factory=AttentionConfig)
    center: CenterConfig = Field(default_factory=CenterConfig)
    container: ContainerConfig = Field(default_factory=ContainerConfig)
    negatives: NegativesConfig = Field(default_factory=NegativesConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    distributed: DistributedConfig = Field(default_factory=DistributedConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.head.name == "attfc" and self.center.source == "keys" and self.keys.per_query < 1:
            raise ValueError(
                f"keys.per_query is {self.keys.per_query}, but head.name=attfc with center.source=keys builds class centers from keys: "
                "set keys.per_query to at least 1"
            )
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size={self.batch_size}: BatchNorm needs at least 2 images per process; set batch_size to 2 or more"
            )
        if self.eval.share and self.eval.root is not None:
            raise ValueError(
                f"eval.share={self.eval.share:g} keeps people of the training set aside, and eval.root={self.eval.root} names others: "
                "set one of them"
            )
        if self.data.sources and self.data.edits:
            raise ValueError("data.edits is about one set and data.sources are several: give each source its own edits")
        if self.data.merge_names and not self.data.sources:
            raise ValueError(
                "data.merge_names joins data.sources, and there are none: set data.sources=[{root: A}, {root: B}]"
            )
        if self.head.rows != "device" and self.head.name not in ("full_fc", "partial_fc"):
            raise ValueError(
                f"head.rows={self.head.rows}, but head.name={self.head.name} has no rows to train: "
                "take head.name=partial_fc or full_fc, or leave head.rows out (a container's memory: container.dtype)"
            )
        if (self.head.rows == "file") != (self.head.rows_folder is not None):
            raise ValueError(
                f"head.rows={self.head.rows} with head.rows_folder={self.head.rows_folder}: "
                "head.rows=file needs head.rows_folder, a folder on a fast disk, and nothing else uses it"
            )
        if (self.center.table == "file") != (self.center.table_folder is not None):
            raise ValueError(
                f"center.table={self.center.table} with center.table_folder={self.center.table_folder}: "
                "center.table=file needs center.table_folder, a folder on a fast disk, and nothing else uses it"
            )
        if self.head.name == "attfc" and self.center.source == "others" and self.center.table == "none":
            raise ValueError(
                "center.source=others remembers every image, and center.table=none gives it no place: set center.table=host, or "
                "file with center.table_folder"
            )
        stored = (
            self.center.source in ("query", "others") or self.center.blend > 0 or self.attention.include_stored_center
        )
        if self.head.name == "attfc" and self.center.table != "none" and not stored:
            raise ValueError(
                f"center.table={self.center.table} keeps stored centers and no option uses them: set center.blend above 0, center.source=query "
                "or attention.include_stored_center=true, or leave it out"
            )
        if self.container.slots is None and self.container.ratio is None:
            raise ValueError("container.slots and container.ratio are both null: set one of them")
        return self
