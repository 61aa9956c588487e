"""How good a model is on people it never saw: verification pairs, all pairs, rank-one, and the report of a run."""

from attfc.evaluation.all_pairs import ALL_PAIRS_FARS, AllPairs, HardPairs, score_all_pairs, score_groups
from attfc.evaluation.all_pairs_of_store import AllPairsEvaluation, evaluate_all_pairs, read_groups
from attfc.evaluation.embedding import Embeddings, embed_store
from attfc.evaluation.held_out import HardestPair, HeldOutEvaluation, evaluate_store
from attfc.evaluation.identification import Identification, RankOne, identify, rank_one
from attfc.evaluation.metrics import (
    PairScores,
    Roc,
    area_under_roc,
    equal_error_rate,
    evaluate_pairs,
    evaluate_scores,
    roc,
    tar_at_far,
)
from attfc.evaluation.pairs import Pairs, generate_pairs, read_pairs
from attfc.evaluation.report import write_report

__all__ = [
    "ALL_PAIRS_FARS",
    "AllPairs",
    "AllPairsEvaluation",
    "Embeddings",
    "HardPairs",
    "HardestPair",
    "HeldOutEvaluation",
    "Identification",
    "PairScores",
    "Pairs",
    "RankOne",
    "Roc",
    "area_under_roc",
    "embed_store",
    "equal_error_rate",
    "evaluate_all_pairs",
    "evaluate_pairs",
    "evaluate_scores",
    "evaluate_store",
    "generate_pairs",
    "identify",
    "rank_one",
    "read_groups",
    "read_pairs",
    "roc",
    "score_all_pairs",
    "score_groups",
    "tar_at_far",
    "write_report",
]
