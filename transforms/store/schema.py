"""The tables of the lake: what one row is, and what each column means.

The grain of a table is in its ``grain``; a column's meaning (unit, range, what null says) travels inside the Parquet
files as field metadata. Every table from ``prompts`` on carries the audit in its grain.
"""

from __future__ import annotations

import dataclasses

import pyarrow as pa

SCHEMA_VERSION = 6
"""Of the lake as a whole. A reader of another version refuses the lake and says what to do."""


@dataclasses.dataclass(frozen=True)
class Forgets:
    """What becomes of a table's rows when samples are forgotten; docs/forgetting.md says it in words.

    Attributes:
        rule: one of forgetting/removal.py's RULES, or stays: ids, counts and distances show nothing.
        cells: with the rules cells and trained, what is emptied.
    """

    rule: str
    cells: tuple[str, ...] = ()


STAYS, ROWS_GO, PICTURES_GO = Forgets("stays"), Forgets("rows"), Forgets("pictures")


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the lake.

    Attributes:
        name: the folder in the lake and the view in ``audit.duckdb``.
        stage: the stage that writes it.
        grain: what one row is.
        schema: columns in order; each field's metadata has a ``meaning``.
        forgets: what ``eidetic forget`` does to it.
    """

    name: str
    stage: str
    grain: str
    schema: pa.Schema
    forgets: Forgets = STAYS

    def meaning(self, column: str) -> str:
        return self.schema.field(column).metadata[b"meaning"].decode()


def _column(name: str, kind: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


TEXT, INT, LONG, FLOAT, DOUBLE, FLAG = (
    pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(),
)  # fmt: skip
MOMENT = pa.timestamp("us", tz="UTC")

_SAMPLE_ID = _column("sample_id", TEXT, "hash of url, caption and occurrence number: see transforms/identity.py")
_ROLE = _column("role", TEXT, "training: the model saw it; control: no model ever saw it")
_AUDIT = (
    _column("audit_id", TEXT, "the audit: digest of the data, the model's revision and every parameter of generation"),
    _column("model_revision", TEXT, "commit of the hub, digest of the local folder, or digest of the generations"),
    _column("parameters_digest", TEXT, "digest of every parameter that shaped this row, of this stage and those before"),
)
_PROMPT_ID = _column("prompt_id", TEXT, "hash of text, origin and sample: see transforms/identity.py")

SAMPLES = Table(
    "samples",
    "ingest",
    "one row of the metadata, whatever became of it",
    pa.schema(
        [
            _SAMPLE_ID,
            _ROLE,
            _column(
                "url",
                TEXT,
                "as the metadata has it, without secrets; for a folder, the file's path inside it; for pictures inside "
                "Parquet, sha256: and the digest of the picture's bytes, or file and row where there is no picture",
                nullable=True,
            ),
            _column("caption", TEXT, "as the metadata has it: hostile text", nullable=True),
            _column("label", TEXT, "its class, by name where the metadata name it: hostile text", nullable=True),
            _column("occurrence", INT, "which repetition of this url and caption: 0 is the first"),
            _column("source_file", TEXT, "provenance: the metadata file"),
            _column("source_row", LONG, "provenance: row in that file, from 0"),
            _column("status", TEXT, "success, filtered, opted_out, failed_to_download, failed_to_resize or forgotten"),
            _column("reason", TEXT, "why it is not a success; null for a success", nullable=True),
            _column("sha256", TEXT, "of the bytes as downloaded, before resizing", nullable=True),
            _column("original_width", INT, "pixels, as downloaded", nullable=True),
            _column("original_height", INT, "pixels, as downloaded", nullable=True),
            _column("width", INT, "pixels, as stored", nullable=True),
            _column("height", INT, "pixels, as stored", nullable=True),
            _column("punsafe", FLOAT, "LAION's probability that the picture is unsafe, 0 to 1", nullable=True),
            _column("pwatermark", FLOAT, "LAION's probability of a watermark, 0 to 1", nullable=True),
            _column("similarity", FLOAT, "LAION's cosine between picture and caption, by its own CLIP", nullable=True),
            _column("metadata_hash", TEXT, "the metadata's own hash column, as text", nullable=True),
            _column(
                "drift",
                TEXT,
                "unchanged or changed: whether metadata_hash is the MD5, SHA-1, SHA-256 or SHA-512 of the bytes as downloaded; "
                "unknown where it is none of them, or nothing was downloaded",
            ),
            _column("metadata_width", INT, "pixels, as the metadata claims", nullable=True),
            _column("metadata_height", INT, "pixels, as the metadata claims", nullable=True),
            _column("ingested_at", MOMENT, "when the row was decided"),
        ]
    ),
    Forgets("cells", ("url", "caption", "label", "sha256", "metadata_hash")),
)

IMAGES = Table(
    "images",
    "ingest",
    "one downloaded image, as stored",
    pa.schema(
        [
            _SAMPLE_ID,
            _ROLE,
            _column("image", pa.binary(), "encoded picture; null where it was forgotten", nullable=True),
            _column("encoding", TEXT, "jpg, png or webp"),
            _column("width", INT, "pixels"),
            _column("height", INT, "pixels"),
            _column("image_size", INT, "the side that ingest resized to, in pixels"),
            _column("resize_mode", TEXT, "img2dataset's resize mode"),
        ]
    ),
    Forgets("cells", ("image",)),
)

EMBEDDINGS = Table(
    "embeddings",
    "embed",
    "one image under one CLIP model",
    pa.schema(
        [
            _SAMPLE_ID,
            _ROLE,
            _column("model", TEXT, "open_clip's name of the architecture, or the local folder's digest"),
            _column("pretrained", TEXT, "tag or digest of the weights"),
            _column("preprocessing", TEXT, "the transform between picture and model, as open_clip prints it"),
            _column("vector", pa.list_(FLOAT), "unit l2 norm; null where the picture could not be decoded", nullable=True),
            _column("thumbnail", pa.binary(), "8 x 8 RGB, row by row; null where there is none", nullable=True),
            _column(
                "caption_cosine",
                FLOAT,
                "with the caption; null without --compare_captions, and where the metadata have no similarity",
                nullable=True,
            ),
            _column(
                "other_caption_cosine",
                FLOAT,
                "with the caption of another picture of the part, as a picture that was exchanged would have; null likewise",
                nullable=True,
            ),
            _column("status", TEXT, "success, failed_to_decode, failed_to_embed or forgotten"),
            _column("reason", TEXT, "why it is not a success; null for a success", nullable=True),
        ]
    ),
    Forgets("cells", ("vector", "thumbnail", "caption_cosine", "other_caption_cosine")),
)

DUPLICATE_PAIRS = Table(
    "duplicate_pairs",
    "deduplicate",
    "one pair of training images over the cosine threshold, smaller id first; of an exact-duplicate set (over 100 "
    "images with the same vector) the canonical image alone has pairs: see duplicate_groups.identical_to",
    pa.schema(
        [
            _column("sample_id_a", TEXT, "the smaller sample_id"),
            _column("sample_id_b", TEXT, "the larger sample_id"),
            _column(
                "cosine",
                FLOAT,
                "of the vectors that were compared: CLIP's, or with --thumbnail_share CLIP's and thumbnail's as one",
            ),
            _column("pixel_distance", FLOAT, "aligned tiled l2 of the two pictures; null where nobody looked", nullable=True),
            _column("pixels_agree", FLAG, "whether the pixels agree with CLIP; null where nobody looked", nullable=True),
        ]
    ),
)

DUPLICATE_GROUPS = Table(
    "duplicate_groups",
    "deduplicate",
    "one embedded training image, in its group (a group of one too)",
    pa.schema(
        [
            _SAMPLE_ID,
            _column("group_id", TEXT, "the smallest sample_id of the group"),
            _column("size", INT, "images in the group"),
            _column("representative", TEXT, "sample_id of the image nearest to the group's centroid"),
            _column("lowest_cosine", FLOAT, "over all pairs of the group: far under the threshold is a chain; 1 for one"),
            _column("diameter", INT, "steps from pair to pair across the group: over 1 is a chain; 0 for one"),
            _column(
                "identical_to",
                TEXT,
                "canonical image of its exact-duplicate set, whose pairs are its pairs; null for one with its own",
                nullable=True,
            ),
        ]
    ),
)

GROUP_SIZES = Table(
    "group_sizes",
    "deduplicate",
    "one threshold of the sweep, and the groups that it would make by single linkage: null under that of the search",
    pa.schema(
        [
            _column("threshold", DOUBLE, "cosine; pairs over it join"),
            _column("groups", LONG, "of two images and more", nullable=True),
            _column("images_in_groups", LONG, "training images in those groups", nullable=True),
            _column("largest", LONG, "images in the largest of them; 1 where there is none", nullable=True),
        ]
    ),
)

SAMPLED_PAIRS = Table(
    "sampled_pairs",
    "deduplicate",
    "one pair of a sampled training image with any other, found by brute force down to 0.1 under the threshold",
    pa.schema(
        [
            _column("sample_id_a", TEXT, "the sampled image"),
            _column("sample_id_b", TEXT, "the other one"),
            _column(
                "cosine",
                FLOAT,
                "of the vectors that were compared: CLIP's, or with --thumbnail_share CLIP's and thumbnail's as one",
            ),
            _column("stands_for", DOUBLE, "pairs of sampled images that it was drawn from, itself included: its weight"),
            _column("found", FLAG, "whether the search found it; null at the threshold and under it", nullable=True),
            _column("judged", FLAG, "whether the recall is measured on it: over the threshold, and the cells not chosen by it"),
            _column("pixel_distance", FLOAT, "aligned tiled l2 of the two pictures; null where nobody looked", nullable=True),
            _column("pixels_agree", FLAG, "whether that is a duplicate's; null where nobody looked", nullable=True),
        ]
    ),
)

KEEP_LIST = Table(
    "keep_list",
    "deduplicate",
    "one training image to keep for the next training run: one of each group",
    pa.schema(
        [
            _SAMPLE_ID,
            _column("url", TEXT, "as the metadata has it", nullable=True),
            _column("group_id", TEXT, "its group"),
            _column("size", INT, "images in the group: all but this one go"),
        ]
    ),
    Forgets("keep_list"),
)

PROMPTS = Table(
    "prompts",
    "generate",
    "one prompt to try in one audit",
    pa.schema(
        [
            *_AUDIT,
            _PROMPT_ID,
            _column("text", TEXT, "the prompt: hostile text; [forgotten] where it was a forgotten caption"),
            _column("origin", TEXT, "duplicates: a group's caption; list: the user's; control: a control's caption"),
            _column("sample_id", TEXT, "whose caption it is; null for the user's", nullable=True),
            _column("group_id", TEXT, "the duplicate group that it stands for; null for the rest", nullable=True),
            _column("n_duplicates", INT, "size of that group; null for the rest", nullable=True),
            _column("stratum", TEXT, "sizes that were drawn together, such as 3-4; list or control for the rest; forgotten"),
            _column("stratum_order", INT, "sorts the strata by size; -1 for list and control, -2 for forgotten"),
            _column("inclusion_probability", DOUBLE, "with which it was drawn in its stratum, over 0 to 1"),
            _column("images_requested", INT, "generations to make"),
        ]
    ),
    Forgets("prompts"),
)

GENERATIONS = Table(
    "generations",
    "generate",
    "one attempt to make an image in one audit",
    pa.schema(
        [
            *_AUDIT,
            _PROMPT_ID,
            _column("sample_index", INT, "which of the prompt's generations, from 0"),
            _column("seed", LONG, "of its initial noise; null for finished generations", nullable=True),
            _column("status", TEXT, "success, safety_filtered or failed"),
            _column("reason", TEXT, "why it is not a success, or why its picture was removed since; else null", nullable=True),
            _column("in_clique", FLAG, "whether it belongs to its prompt's largest clique"),
            _column("own_l2", DOUBLE, "to the image whose caption was the prompt; null without either", nullable=True),
            _column("nearest", FLAG, "whether that is the smallest of its prompt's: its picture speaks for the prompt"),
            _column("image", pa.binary(), "PNG; null where not kept (see cliques.keep_rule), or removed since", nullable=True),
            _column(
                "thumbnail", pa.binary(), "8 x 8 RGB, row by row, the means of its blocks; null without one", nullable=True
            ),
            _column("width", INT, "pixels", nullable=True),
            _column("height", INT, "pixels", nullable=True),
            _column("steps", INT, "denoising steps", nullable=True),
            _column("guidance_scale", DOUBLE, "classifier-free guidance", nullable=True),
            _column("seconds", DOUBLE, "its share of the batch's time", nullable=True),
            _column("device", TEXT, "what it was made on", nullable=True),
            _column("dtype", TEXT, "the model's number type", nullable=True),
        ]
    ),
    PICTURES_GO,
)

CLIQUES = Table(
    "cliques",
    "generate",
    "one prompt that was tried in one audit",
    pa.schema(
        [
            *_AUDIT,
            _PROMPT_ID,
            _column("n_generated", INT, "attempts that succeeded"),
            _column("n_failed", INT, "attempts that failed or that the model's safety filter took"),
            _column("edge_distance", DOUBLE, "two generations are joined where their tiled l2 is below this"),
            _column("clique_size", INT, "nodes of the largest clique"),
            _column("clique_exact", FLAG, "false: the search was cut short, there may be a larger one"),
            _column("clique_threshold", INT, "flagged from this size on"),
            _column("mean_distance", DOUBLE, "mean tiled l2 inside the clique; null under two nodes", nullable=True),
            _column("flagged", FLAG, "the black-box membership inference: memorised, says the clique"),
            _column(
                "keep_rule",
                TEXT,
                "flagged, all, slice or control: why all its images are stored; nearest, dropped: nearest and central alone",
            ),
            _column("keep_probability", DOUBLE, "with which a prompt of this outcome keeps all its images, 0 to 1"),
            _column("sizes_by_distance", TEXT, "JSON: edge distance → largest clique, for the sweep"),
            _column("seconds", DOUBLE, "generation and filtering"),
        ]
    ),
)

_DISTANCES = (
    _column("l2", DOUBLE, "over pixels in 0 to 1, divided by the root of their number (paper, section 4.2)"),
    _column("tiled_l2", DOUBLE, "largest l2 among 16 tiles in the same position"),
    _column("adaptive_l2", DOUBLE, "l2 over alpha times the mean l2 to the others; null without any", nullable=True),
    _column("n_others", INT, "how many others that mean is over"),
    _column(
        "nearest_other_l2", DOUBLE, "to the nearest training image outside the group and its twins; null without", nullable=True
    ),
    _column("ratio", DOUBLE, "l2 over nearest_other_l2 (Yoon et al. 2023, Gu et al. 2023)", nullable=True),
    _column("coarse_l2", DOUBLE, "l2 of the pictures' block means: COARSE along each side, see kernels/distances.py"),
    _column("coarse_ratio", DOUBLE, "coarse_l2 over the smallest of another group that is no twin", nullable=True),
)

MATCHES = Table(
    "matches",
    "match",
    "one judged generation against one group of training images, or one control image, in one audit",
    pa.schema(
        [
            *_AUDIT,
            _PROMPT_ID,
            _column("sample_index", INT, "which of the prompt's generations"),
            _column("nearest", FLAG, "whether that is the prompt's nearest to its own image: see generations"),
            _column("regenerated", FLAG, "whether its picture was not kept, and made again: see regenerations"),
            _column("sample_id", TEXT, "the group's member, or the control, that lies nearest in l2"),
            _column("group_id", TEXT, "the member's duplicate group; a control is a group of its own"),
            _ROLE,
            _column("relation", TEXT, "own: the image whose caption was the prompt; neighbour: near by CLIP or thumbnail"),
            _column("found_by", TEXT, "clip, thumbnail or both; own where it was compared whatever they say"),
            _column(
                "cosine",
                FLOAT,
                "of the CLIP vectors of generation and representative; null where CLIP did not find it",
                nullable=True,
            ),
            _column(
                "offset",
                INT,
                "where the generation lies along the side of the image that is longer than it, in pixels at generation size",
            ),
            *_DISTANCES,
            _column("extracted", FLAG, "the paper's verdict: l2 ≤ delta"),
        ]
    ),
    ROWS_GO,
)

GENERATION_EMBEDDINGS = Table(
    "generation_embeddings",
    "match",
    "one stored generation, or one that was made again, under one CLIP: that of embeddings",
    pa.schema(
        [
            *_AUDIT,
            _PROMPT_ID,
            _column("sample_index", INT, "which of the prompt's generations"),
            _column("vector", pa.list_(FLOAT), "unit l2 norm; null where CLIP makes nothing of it", nullable=True),
        ]
    ),
    PICTURES_GO,
)

UNREADABLE = Table(
    "unreadable",
    "match",
    "one picture of the lake that could not be decoded while it was matched: it is near to nothing, and nothing is said of it",
    pa.schema(
        [
            *_AUDIT,
            _column("source", TEXT, "the table that holds it: images, generations or regenerations"),
            _column("sample_id", TEXT, "which image; null of a generation", nullable=True),
            _column("prompt_id", TEXT, "of which prompt it is a generation; null of an image", nullable=True),
            _column("sample_index", INT, "which of the prompt's generations; null of an image", nullable=True),
            _column("status", TEXT, "failed_to_decode"),
            _column("reason", TEXT, "what the decoder said"),
        ]
    ),
)

DECOYS = Table(
    "decoys",
    "match",
    "one picture that is no copy, against its nearest training group, as if it were a generation",
    pa.schema(
        [
            *_AUDIT,
            _column(
                "kind",
                TEXT,
                "held_out: a control; left_out: a training image against the other groups; blurred: a training image of which "
                "4 x 4 block means are left",
            ),
            _column("sample_id", TEXT, "of which picture it is made"),
            _column("group_id", TEXT, "the nearest training group, by coarse_l2"),
            *_DISTANCES,
        ]
    ),
    ROWS_GO,
)

COPY_CALIBRATION = Table(
    "copy_calibration",
    "match",
    "one audit: the limits below which a generation is a copy",
    pa.schema(
        [
            *_AUDIT,
            _column("l2_limit", DOUBLE, "a copy's l2 is at most this"),
            _column("coarse_l2_limit", DOUBLE, "its coarse_l2 is below this"),
            _column("coarse_ratio_limit", DOUBLE, "and its coarse_ratio below this"),
            _column("max_false_positive_rate", DOUBLE, "what was asked for, per picture"),
            _column("n_held_out", INT, "held-out pictures that the limits were made from"),
            _column("n_left_out", INT, "training images, each against the others, that they were made from as well"),
            _column(
                "promised_rate", DOUBLE, "bound on the chance that a new picture is called; null with too few", nullable=True
            ),
        ]
    ),
)

REGENERATIONS = Table(
    "regenerations",
    "match",
    "one generation that was not kept, whose thumbnail lies near a training image, made again from its seed",
    pa.schema(
        [
            *_AUDIT,
            _PROMPT_ID,
            _column("sample_index", INT, "which of the prompt's generations"),
            _column("group_id", TEXT, "the group that its thumbnail lies near"),
            _column("bound", DOUBLE, "l2 of the thumbnails: the pictures are no nearer"),
            _column("status", TEXT, "success; or differs, failed or safety_filtered: then nothing was judged"),
            _column("reason", TEXT, "why it is not a success, or why its picture was removed since; else null", nullable=True),
            _column("image", pa.binary(), "PNG; null where there is none, or removed since", nullable=True),
        ]
    ),
    PICTURES_GO,
)

CALIBRATION = Table(
    "calibration",
    "match",
    "one distance in one audit: how near to a control's own image the generations of its caption come",
    pa.schema(
        [
            *_AUDIT,
            _column("distance", TEXT, "l2, tiled_l2 or adaptive_l2, of the nearest generation"),
            _column("chosen", FLAG, "whether seen goes by this distance"),
            _column("max_false_positive_rate", DOUBLE, "what was asked for, per image"),
            _column("n_controls", INT, "controls whose nearest generation has that distance"),
            _column("generations_per_prompt", INT, "of a training prompt"),
            _column("generations_per_control", INT, "of a control"),
            _column("threshold", DOUBLE, "called where the distance is below; null: too few controls", nullable=True),
            _column("promised_rate", DOUBLE, "bound on a control-like image's chance to be called", nullable=True),
            _column("controls_called", INT, "controls below the threshold", nullable=True),
            _column("upper_bound", DOUBLE, "95% Clopper-Pearson upper bound on the rate among controls", nullable=True),
            _column("controls_within_delta", INT, "controls that the paper's rule calls (l2 ≤ delta), own image"),
            _column("controls_near_another_within_delta", INT, "controls with a generation within delta of another control"),
            _column("images_tested", INT, "groups of training images that were tried with their own caption"),
            _column("images_called", INT, "of those, below the threshold", nullable=True),
            _column("false_discovery_rate", DOUBLE, "Storey's estimate, pi0 = 1; null where none was called", nullable=True),
            _column(
                "separation", DOUBLE, "area under the curve, tried images with kept generations against controls", nullable=True
            ),
        ]
    ),
)

EIDETIC_COUNTS = Table(
    "eidetic_counts",
    "match",
    "one training image that a verdict may call extracted, in one audit",
    pa.schema(
        [
            *_AUDIT,
            _SAMPLE_ID,
            _column("eidetic_delta", DOUBLE, "two training images within this l2 are counted as one memory"),
            _column(
                "k",
                LONG,
                "training images within eidetic_delta of it, itself included (paper, definition 2); null where its own picture "
                "could not be decoded any more: see unreadable",
                nullable=True,
            ),
        ]
    ),
    ROWS_GO,
)

AUDITS = Table(
    "audits",
    "match",
    "one audit",
    pa.schema(
        [
            *_AUDIT,
            _column("generator", TEXT, "diffusers or folder"),
            _column("model", TEXT, "as the user named it"),
            _column("ingest_snapshot", TEXT, "the training data"),
            _column("embed_snapshot", TEXT, "their vectors"),
            _column("deduplicate_snapshot", TEXT, "their groups"),
            _column("parameters", TEXT, "JSON: stage → every parameter"),
            _column("versions", TEXT, "JSON: package → version"),
            _column("machine", TEXT, "where it ran"),
            _column("finished_at", MOMENT, "when its matches were complete"),
        ]
    ),
)

_CLASS = _column("class", TEXT, "copied: the audit says that it returns its own image; not_copied; never_seen: a control's")
_MITIGATION = _column("mitigation", TEXT, "none, or one of transforms/models/mitigations.py, with its parameters")

MITIGATIONS = Table(
    "mitigations",
    "mitigate",
    "one prompt under one mitigation, asked by its caption or by an embedding that DoRI found",
    pa.schema(
        [
            *_AUDIT,
            _PROMPT_ID,
            _column("sample_id", TEXT, "the image whose caption it is: what DoRI looks for"),
            _CLASS,
            _MITIGATION,
            _column("attacked", FLAG, "whether DoRI's embedding was asked for, and not the caption"),
            _column("images", INT, "pictures that were made and judged"),
            _column("copies", INT, "of those, the copies of its own image, by the limits of copy_calibration"),
            _column("copied", FLAG, "whether the nearest of them is one; null without any", nullable=True),
            _column("nearest_l2", DOUBLE, "of the nearest to its own image; null without any", nullable=True),
            _column("extracted", FLAG, "the paper's verdict on that one: l2 ≤ delta; null without any", nullable=True),
            _column(
                "prompt_similarity",
                DOUBLE,
                "mean cosine of pictures and prompt under the lake's CLIP; null where that makes no vectors of texts",
                nullable=True,
            ),
            _column(
                "picture_similarity",
                DOUBLE,
                "mean cosine of pictures and those of the same seed without mitigation or attack",
                nullable=True,
            ),
            _column("seconds", DOUBLE, "of one picture, the mean; DoRI's own search is not in it", nullable=True),
            _column("evaluations", DOUBLE, "passes of one picture through the U-Net, forward and backward", nullable=True),
            _column("status", TEXT, "success; failed: no picture was made; unreadable: its own image can't be looked at"),
            _column("reason", TEXT, "why it is not a success; null for a success", nullable=True),
        ]
    ),
)


def _rate(name: str, what: str) -> tuple[pa.Field, ...]:
    """A count, its share of the prompts, and the ends of its exact 95% interval."""
    return (
        _column(name, LONG, f"prompts {what}; null where that was not tried", nullable=True),
        _column(f"rate_{name}", DOUBLE, "of the prompts; null without any", nullable=True),
        _column(f"rate_{name}_lower", DOUBLE, "lower end of the exact 95% interval, by Blaker", nullable=True),
        _column(f"rate_{name}_upper", DOUBLE, "its upper end", nullable=True),
    )


MITIGATION_EFFECTS = Table(
    "mitigation_effects",
    "mitigate",
    "one class of prompts under one mitigation, beside the same prompts without any",
    pa.schema(
        [
            *_AUDIT,
            _MITIGATION,
            _CLASS,
            _column("prompts", LONG, "that are judged under it, without it, and after DoRI where that was asked for"),
            *_rate("before", "whose nearest picture is a copy of their own image without mitigation"),
            *_rate("after", "likewise under it"),
            *_rate("dori", "likewise under it, asked by DoRI's embedding"),
            _column("extracted_before", LONG, "prompts within delta without mitigation: the paper's rule"),
            _column("extracted_after", LONG, "likewise under it"),
            _column("extracted_dori", LONG, "likewise under it, asked by DoRI's embedding", nullable=True),
            _column("prompt_similarity", DOUBLE, "mean cosine of pictures and prompt under it", nullable=True),
            _column("prompt_similarity_before", DOUBLE, "likewise without", nullable=True),
            _column("picture_similarity", DOUBLE, "mean cosine with the pictures of the same seeds without it", nullable=True),
            _column(
                "cmmd",
                DOUBLE,
                "distance of the pictures under it from held-out ones, by the lake's CLIP; null where there are too few",
                nullable=True,
            ),
            _column("cmmd_before", DOUBLE, "likewise of those without it", nullable=True),
            _column("cmmd_pictures", LONG, "pictures under it that cmmd is of"),
            _column("cmmd_held_out", LONG, "held-out ones that they are compared with: controls, but none that is asked for"),
            _column("seconds", DOUBLE, "of one picture under it, median over prompts", nullable=True),
            _column("seconds_before", DOUBLE, "likewise without", nullable=True),
            _column("evaluations", DOUBLE, "passes through the U-Net of one picture under it, mean", nullable=True),
            _column("evaluations_before", DOUBLE, "likewise without", nullable=True),
        ]
    ),
)

_NEW_OR_GONE = "prompts of the panel that give back their image {}, both nights by the earlier one's limits"

HISTORY = Table(
    "history",
    "nightly",
    "one night",
    pa.schema(
        [
            _column("date", TEXT, "the night, as YYYY-MM-DD"),
            _column("model", TEXT, "as the user named it"),
            _column("model_revision", TEXT, "commit of the hub, or digest of the local folder"),
            _column("samples", LONG, "rows of metadata so far"),
            _column("images", LONG, "of those, pictures that were had"),
            _column("samples_new", LONG, "rows of metadata that the night before had not"),
            _column("images_recovered", LONG, "that had failed to download on a night before"),
            _column("ingest_snapshot", TEXT, "the training data"),
            _column("deduplicate_snapshot", TEXT, "their groups: what the rotating prompts are drawn from"),
            _column("panel_snapshot", TEXT, "the groups that the panel is drawn from: those of the night that began it"),
            _column("panel_options", TEXT, "digest of the options under which nights can be compared"),
            _column("panel_size", LONG, "prompts that were asked for in the panel"),
            _column("panel_audit_id", TEXT, "the audit of the fixed panel"),
            _column("panel_match", TEXT, "snapshot of its matches"),
            _column("rotating_audit_id", TEXT, "the audit of the rotating prompts"),
            _column("rotating_match", TEXT, "snapshot of their matches"),
            _column(
                "rotating_options", TEXT, "digest of what makes two nights' rotating prompts the same: model, data, options"
            ),
            _column("rotating_seed", LONG, "that they are drawn by"),
            _column("verdict_used", TEXT, "extracted_calibrated, or copied where there are no controls, or too few"),
            _column("panel_prompts", LONG, "prompts that are tried every night"),
            _column("panel_extracted", LONG, "of those, the ones that give back their image, by verdict_used"),
            _column("prompts_tried", LONG, "rotating prompts"),
            _column("rate", DOUBLE, "of the population, by verdict_used and the rotating prompts: what give back their image"),
            _column("rate_lower", DOUBLE, "lower end of the exact 95% interval"),
            _column("rate_upper", DOUBLE, "its upper end"),
            _column("rate_copied", DOUBLE, "likewise: prompts that return their own image as a copy"),
            _column("rate_copied_lower", DOUBLE, "lower end of the exact 95% interval"),
            _column("rate_copied_upper", DOUBLE, "its upper end"),
            _column(
                "rate_seen", DOUBLE, "likewise: whose image the model was trained on; null without controls", nullable=True
            ),
            _column("rate_seen_lower", DOUBLE, "lower end of the exact 95% interval", nullable=True),
            _column("rate_seen_upper", DOUBLE, "its upper end", nullable=True),
            _column("images_copied", LONG, "training images that the rotating prompts returned as copies, theirs or others"),
            _column("smallest_change", DOUBLE, "share of the panel that must be new to be seen, with 80% power", nullable=True),
            _column("compared_with", TEXT, "date of the night before with the same options; null on the first", nullable=True),
            _column("new_extractions", LONG, _NEW_OR_GONE.format("now and did not"), nullable=True),
            _column("gone_extractions", LONG, _NEW_OR_GONE.format("no longer"), nullable=True),
            _column(
                "p_value", DOUBLE, "that it is no worse, by the other night's limits: the smallest, by Holm", nullable=True
            ),
            _column("baseline", TEXT, "date of the night that was named; null without", nullable=True),
            _column("baseline_new_extractions", LONG, "as new_extractions, against the baseline", nullable=True),
            _column("baseline_gone_extractions", LONG, "as gone_extractions, against the baseline", nullable=True),
            _column("baseline_p_value", DOUBLE, "as p_value, against the baseline", nullable=True),
            _column("significance", DOUBLE, "worse where a p-value is at most this"),
            _column("verdict", TEXT, "first, fine or worse"),
            _column("exit_code", INT, "of the command: 0 or 3"),
            _column("finished_at", MOMENT, "when it was decided"),
        ]
    ),
)

NIGHT_CHANGES = Table(
    "night_changes",
    "nightly",
    "one prompt of the panel whose verdict is not that of the night before, both by that night's limits",
    pa.schema(
        [
            _column("date", TEXT, "the night"),
            _column("compared_with", TEXT, "the night before"),
            _column("kind", TEXT, "new: gives back its image now; gone: no longer"),
            _PROMPT_ID,
            _column("sample_id", TEXT, "the image whose caption it is: samples has its url and caption", nullable=True),
            _column("group_id", TEXT, "its duplicate group", nullable=True),
        ]
    ),
)

TOMBSTONES = Table(
    "tombstones",
    "forget",
    "one thing that was forgotten: a sample, or bytes that must not be found in the lake again",
    pa.schema(
        [
            _column("kind", TEXT, "sample, url, content, caption, picture, vector, thumbnail, generation or shown"),
            _column("sample_id", TEXT, "whose; null where the lake didn't have it, and for generations", nullable=True),
            _column("sha256", TEXT, "of the bytes, a text's as UTF-8, a sample's of its id; content: as downloaded"),
            _column("length", LONG, "bytes; null where they are not searched for", nullable=True),
            _column("ending", LONG, "32-bit hash of the last 16 bytes; null where there are fewer", nullable=True),
            _column("reason", TEXT, "as the user gave it"),
            _column("forgotten_at", MOMENT, "when"),
        ]
    ),
)

_MODEL_ID = _column("model_id", TEXT, "digest of the training and the step: a checkpoint is a model of its own")
_RUN_ID = _column(
    "run_id", TEXT, "the training: digest of configuration, pictures with copies and labels, and the code's version"
)

_AXES = tuple(
    _column(name, kind, meaning, nullable=name not in ("family", "pixels", "images"))
    for name, kind, meaning in (
        ("family", TEXT, "diffusion (in pixels, predicts the noise), gan, or other: a model that was brought, of any kind"),
        ("pixels", INT, "side of its pictures"),
        ("width", INT, "channels of the first level; of a GAN a quarter of all levels'"),
        ("layers", INT, "residual blocks of a level"),
        ("attention", FLAG, "whether one level attends to itself"),
        ("dropout", DOUBLE, "share of numbers that are left out while training, 0 to 1"),
        ("images", INT, "different training pictures, without canaries: n"),
        ("pool", INT, "pictures that they are drawn from: over images, they are a random part of it; 0: as many as images"),
        ("draw", INT, "which draw of the lake's pictures the pool is"),
        ("split", INT, "which random part of the pool they are"),
        ("side", TEXT, "in, or out: as many of the pool's others"),
        ("copied_images", INT, "of them, those that stand there several times"),
        ("copies", INT, "how many times those stand there"),
        ("canaries", INT, "pictures of uniform noise on top, which stand there 1 to 8 times in turn (paper, section 7.3)"),
        ("deduplicated", FLAG, "whether only what the keep list keeps is drawn, and each once"),
        ("labels", TEXT, "none (unconditional), true, random (by lot), or unique (a class for each picture)"),
        ("classes", INT, "of random labels"),
        ("flip", FLAG, "whether half of the pictures of each batch are mirrored"),
        ("steps", INT, "training steps, unless epochs says them"),
        ("epochs", DOUBLE, "training steps as passes through all pictures; 0: steps says them"),
        ("checkpoints", INT, "models that are kept on the way: the last, and at about half of the steps of the next one"),
        ("batch_size", INT, "pictures of a step"),
        ("learning_rate", DOUBLE, "of Adam"),
        ("warmup", INT, "steps over which the learning rate rises"),
        ("weight_decay", DOUBLE, "of AdamW"),
        ("ema", DOUBLE, "decay of the average of the weights that is kept, 0 to 1; 0: the last weights are"),
        ("precision", TEXT, "of the network's products: float32 or bfloat16"),
        ("timesteps", INT, "noise levels of a diffusion model"),
        ("schedule", TEXT, "diffusers' name of how the noise grows"),
        ("privacy_noise", DOUBLE, "DP-SGD: standard deviation of the noise over the clipping norm; 0 for none"),
        ("privacy_clipping", DOUBLE, "DP-SGD: norm that each picture's gradient is clipped to; 0: no DP-SGD"),
        ("seed", LONG, "of weights, order and noise, with draw, split and side: another draw is a replicate in all"),
    )
)
"""Null of a model that was brought, but for what shows."""

MODELS = Table(
    "models",
    "train",
    "one model: a training at one of its steps",
    pa.schema(
        [
            _MODEL_ID,
            _RUN_ID,
            _column("cohort", TEXT, "digest of all axes but split, side and seed: shadows of each other"),
            _column("experiments", pa.list_(TEXT), "names that the sweep's file gives to where it comes from"),
            _column(
                "brought", TEXT, "JSON: where a model lies that was not trained here; null of those that were", nullable=True
            ),
            *_AXES,
            _column("total", LONG, "pictures of an epoch, with copies and canaries"),
            _column("step", INT, "training steps so far"),
            _column("last", FLAG, "whether that is the end of the training"),
            _column("passes", DOUBLE, "epochs so far"),
            _column("seconds", DOUBLE, "of training so far", nullable=True),
            _column("parameters", LONG, "trained weights; of a GAN those of both networks", nullable=True),
            _column("loss", DOUBLE, "mean of the last 100 steps; of a GAN the discriminator's", nullable=True),
            _column("epsilon", DOUBLE, "differential privacy at a delta of 1 / total; null without noise", nullable=True),
            _column(
                "status",
                TEXT,
                "success; diverged: the loss is no number; failed: it could not be trained; forgotten: its weights are removed",
            ),
            _column("reason", TEXT, "why it is not a success; null for a success", nullable=True),
            _column("weights_digest", TEXT, "SHA-256 of its files of weights; null without", nullable=True),
            _column("device", TEXT, "what it was trained on", nullable=True),
        ]
    ),
    Forgets("trained", ("weights_digest",)),
)

MODEL_MEMBERS = Table(
    "model_members",
    "train",
    "one picture that one training was given",
    pa.schema(
        [
            _RUN_ID,
            _column("sample_id", TEXT, "which; of a canary its own name"),
            _column("kind", TEXT, "picture or canary"),
            _column("copies", INT, "how many times it stood there"),
            _column("class", INT, "the class that it was given; null without", nullable=True),
        ]
    ),
)

_NEAREST = {
    "": "the nearest picture that it was trained on",
    "control_": "the nearest of as many pictures that it was not trained on",
}

UNTARGETED_GENERATIONS = Table(
    "untargeted_generations",
    "extract",
    "one picture that a model made of random numbers, or of a class, and nobody asked for by a caption",
    pa.schema(
        [
            _MODEL_ID,
            _column("sample_index", INT, "which of the model's, from 0: the same seed for all models"),
            _column("seed", LONG, "of its initial noise; null for finished generations", nullable=True),
            _column("class", INT, "that was asked for; null without", nullable=True),
            _column("status", TEXT, "success, failed or forgotten"),
            _column("reason", TEXT, "why it is not a success; null for a success", nullable=True),
            *(
                field
                for prefix, what in _NEAREST.items()
                for field in (
                    _column(f"{prefix}sample_id", TEXT, f"{what}, by l2; null without", nullable=True),
                    _column(f"{prefix}l2", DOUBLE, "to it, over pixels in 0 to 1", nullable=True),
                    _column(f"{prefix}second_l2", DOUBLE, "to the next of those, which is another picture", nullable=True),
                    _column(f"{prefix}mean_l2", DOUBLE, "mean to the n next ones (paper, section 5.1: S)", nullable=True),
                    _column(f"{prefix}by_l2", FLAG, "whether l2 <= delta calls it"),
                    _column(f"{prefix}by_adaptive_l2", FLAG, "whether l2 <= alpha * mean_l2 does (paper, section 5.1)"),
                    _column(f"{prefix}by_ratio", FLAG, "whether l2 / second_l2 < 1/3 does (Gu et al. 2023)"),
                )
            ),
            _column("image", pa.binary(), "PNG; null unless a rule calls it, of a member or a control", nullable=True),
            _column("thumbnail", pa.binary(), "8 x 8 RGB, row by row, the means of its blocks", nullable=True),
        ]
    ),
    Forgets("trained", ("image", "thumbnail")),
)

UNTARGETED_ATTACKS = Table(
    "untargeted_attacks",
    "extract",
    "one model that was asked for pictures, and how good those are",
    pa.schema(
        [
            _MODEL_ID,
            _column("generations", LONG, "pictures that it was asked for"),
            _column("failed", LONG, "of those, what came to nothing"),
            _column("members", LONG, "pictures that it was trained on, identical ones once, that they were compared with"),
            _column("controls", LONG, "pictures that it was not trained on, likewise"),
            _column("delta", DOUBLE, "limit of by_l2"),
            _column("alpha", DOUBLE, "factor of by_adaptive_l2"),
            _column("neighbours", INT, "n of by_adaptive_l2"),
            _column("ratio_limit", DOUBLE, "limit of by_ratio"),
            _column("sampler", TEXT, "ddim or ddpm; none for a GAN"),
            _column("sampling_steps", INT, "times that the network is asked for a picture"),
            _column("seconds", DOUBLE, "of making and comparing them"),
            _column("frechet", DOUBLE, "Fréchet distance between features of generations and held-out pictures", nullable=True),
            _column("cmmd", DOUBLE, "squared MMD between them, times 1,000 (Jayasumana et al. 2024)", nullable=True),
            _column(
                "precision", DOUBLE, "share of generations among held-out pictures (Kynkäänniemi et al. 2019)", nullable=True
            ),
            _column("recall", DOUBLE, "share of held-out pictures among generations", nullable=True),
            _column("quality_generations", LONG, "generations that quality is made of"),
            _column("quality_pictures", LONG, "held-out pictures that it is made of: the same for all models of a size"),
            _column("quality_features", TEXT, "what made the features: the lake's CLIP, or the digest of --quality_weights"),
            _column("status", TEXT, "success or failed"),
            _column("reason", TEXT, "why it is not a success; null for a success", nullable=True),
        ]
    ),
)

_DRAWS = _column("draws", INT, "of noise, that the loss is the mean of; 0 where none is drawn")
_FLIPS = _column("flips", FLAG, "whether the loss of the mirrored picture is in that mean")
_MEMBER = _column("member", FLAG, "whether the model was trained on it")
_TIMESTEP = _column("timestep", INT, "noise level of the diffusion model, from 0; null for a GAN", nullable=True)

LOSSES = Table(
    "losses",
    "infer",
    "one picture under one model at one timestep",
    pa.schema(
        [
            _MODEL_ID,
            _SAMPLE_ID,
            _MEMBER,
            _TIMESTEP,
            _column(
                "value",
                DOUBLE,
                "mean squared error of the predicted noise; of a GAN minus what its discriminator says; null for no number",
                nullable=True,
            ),
            _DRAWS,
            _FLIPS,
        ]
    ),
)

MEMBERSHIP_SCORES = Table(
    "membership_scores",
    "infer",
    "one picture under one model by one attack, at one timestep, of so many draws and flips",
    pa.schema(
        [
            _MODEL_ID,
            _SAMPLE_ID,
            _MEMBER,
            _column("attack", TEXT, "loss, secmi, pia, pian, sima, discriminator, lira_online, lira_offline or rmia"),
            _TIMESTEP,
            _column(
                "chosen",
                FLAG,
                "whether its timestep was chosen on other models of the cohort, for this attack, or is the only one",
            ),
            _DRAWS,
            _FLIPS,
            _column("score", DOUBLE, "higher = member; null where it is no number, or shadows of a side lack", nullable=True),
        ]
    ),
)

DATASET_INFERENCE = Table(
    "dataset_inference",
    "infer",
    "one set of pictures of one model, of which it is asked whether the model was trained on it (CDI)",
    pa.schema(
        [
            _MODEL_ID,
            _column("pictures", TEXT, "members, or others: pictures that the model was not trained on"),
            _column("suspects", LONG, "pictures of the set: up to 70, or all"),
            _column("controls", LONG, "pictures that the model was not trained on, which they are held against"),
            _column("tested_suspects", LONG, "of the set, those that the scoring function was not fitted on"),
            _column("tested_controls", LONG, "of the controls, likewise"),
            _column(
                "p_value", DOUBLE, "that the set scores no higher than the controls; null where reason says why", nullable=True
            ),
            _column("statistic", DOUBLE, "Welch's t", nullable=True),
            _column("difference", DOUBLE, "of the mean scores, -1 to 1", nullable=True),
            _column("reason", TEXT, "why there is no p-value", nullable=True),
        ]
    ),
)

EXPOSURES = Table(
    "exposures",
    "infer",
    "one canary that one model was trained on (paper, section 7.3)",
    pa.schema(
        [
            _MODEL_ID,
            _column("sample_id", TEXT, "the canary's name"),
            _column("copies", INT, "how many times it stood there"),
            _column("loss", DOUBLE, "mean over timesteps, draws and flips; null where it is no number", nullable=True),
            _column("rank", DOUBLE, "of its loss in the pool, 1 for the smallest, of equal ones the mean", nullable=True),
            _column("pool", LONG, "the canary, and canaries of the same draw that were never planted"),
            _column("exposure", DOUBLE, "bits: log2(pool) - log2(rank)", nullable=True),
            _column("maximum", DOUBLE, "bits that the pool can show at most"),
        ]
    ),
)

MEMBERSHIP_ATTACKS = Table(
    "membership_attacks",
    "infer",
    "one model that was asked about pictures, and with what it was attacked",
    pa.schema(
        [
            _MODEL_ID,
            _column("members", LONG, "pictures that it was trained on, that it was asked about"),
            _column(
                "non_members", LONG, "pictures that it was not trained on, likewise: the rest of the pool, or as many others"
            ),
            _column("left_out", LONG, "pictures of the pool with a near-duplicate in it, of which membership says nothing"),
            _column("population", LONG, "pictures outside the pool that RMIA compares with"),
            _column("draws", INT, "of noise; 0 for a GAN"),
            _column("flips", FLAG, "whether mirrored pictures were asked about"),
            _column("timesteps", pa.list_(INT), "that were asked for; none for a GAN"),
            _column("shadows", LONG, "models of its cohort with other pictures, at the same step; 0 where no_shadows says why"),
            _column(
                "spread",
                TEXT,
                "LiRA's variance: pooled, or image (each its own, from 64 shadows on); null without",
                nullable=True,
            ),
            _column("no_shadows", TEXT, "why there is neither LiRA nor RMIA; null where there is", nullable=True),
            _column("seconds", DOUBLE, "of asking it"),
            _column("status", TEXT, "success or failed"),
            _column("reason", TEXT, "why it is not a success; null for a success", nullable=True),
        ]
    ),
)

INPAINTINGS = Table(
    "inpaintings",
    "inpaint",
    "one training picture whose left half one model was asked to make again",
    pa.schema(
        [
            _MODEL_ID,
            _column("sample_id", TEXT, "which picture: a target"),
            _column("member", FLAG, "whether the model was trained on it"),
            _column("shadow_model_id", TEXT, "the model of its cohort that was not trained on it, and judges", nullable=True),
            _column("inpaintings", INT, "that were made"),
            _column("kept", INT, "of those, the ones with the smallest score"),
            _column(
                "score",
                DOUBLE,
                "mean of theirs: the model's loss over the shadow's, at one timestep (paper, section 5.3)",
                nullable=True,
            ),
            _column("kept_l2", DOUBLE, "mean l2 of those to the target, over the half that was made", nullable=True),
            _column("all_l2", DOUBLE, "likewise of all", nullable=True),
            _column("nearest_l2", DOUBLE, "the smallest of all", nullable=True),
            _column("image", pa.binary(), "PNG of the one with the smallest score", nullable=True),
            _column("evaluations", LONG, "times that the two networks were asked"),
            _column("seconds", DOUBLE, "that it took"),
            _column("status", TEXT, "success, failed or forgotten"),
            _column("reason", TEXT, "why it is not a success; null for a success", nullable=True),
        ]
    ),
    Forgets("trained", ("image",)),
)

AXES = tuple(field.name for field in _AXES)
"""The columns of ``models`` that are axes of a sweep."""

TABLES = {
    table.name: table
    for table in (
        SAMPLES, IMAGES, EMBEDDINGS, DUPLICATE_PAIRS, DUPLICATE_GROUPS, GROUP_SIZES, SAMPLED_PAIRS, KEEP_LIST, PROMPTS,
        GENERATIONS, CLIQUES, GENERATION_EMBEDDINGS, MATCHES, UNREADABLE, DECOYS, COPY_CALIBRATION, REGENERATIONS, CALIBRATION,
        EIDETIC_COUNTS, AUDITS, MITIGATIONS, MITIGATION_EFFECTS, MODELS, MODEL_MEMBERS, UNTARGETED_GENERATIONS,
        UNTARGETED_ATTACKS, LOSSES, MEMBERSHIP_SCORES, DATASET_INFERENCE, EXPOSURES, MEMBERSHIP_ATTACKS, INPAINTINGS,
        HISTORY, NIGHT_CHANGES, TOMBSTONES,
    )
}  # fmt: skip
"""Every table that a stage writes, by name. The marts are described beside their SQL."""
