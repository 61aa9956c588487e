"""How good a model is on people it never saw: pairs, templates, all pairs, identification, with intervals, comparisons and reports."""

from attfc.evaluation.bootstrap import Interval, Resampled, interval_of_difference, resample
from attfc.evaluation.embed import Embedder, Embeddings, embed_store
from attfc.evaluation.metrics import (
    PairScores,
    Roc,
    area_under_roc,
    equal_error_rate,
    evaluate_pairs,
    evaluate_scores,
    roc,
)
from attfc.evaluation.protocols.all_pairs import AllPairsEvaluation, evaluate_all_pairs, read_groups
from attfc.evaluation.protocols.all_pairs_scores import (
    ALL_PAIRS_FARS,
    AllPairs,
    HardPairs,
    score_all_pairs,
    score_groups,
)
from attfc.evaluation.protocols.held_out import HardestPair, HeldOutEvaluation, evaluate_store
from attfc.evaluation.protocols.identification import StoreIdentification, identify_in_store
from attfc.evaluation.protocols.pair_lists import Pairs, generate_pairs, read_pairs
from attfc.evaluation.protocols.pairs import KNOWN_SETS, PairEvaluation, evaluate_pair_list, find_sets, pairs_of_set
from attfc.evaluation.protocols.search import Identification, RankOne, identify, rank_one
from attfc.evaluation.protocols.template_lists import TemplateLists, read_template_lists
from attfc.evaluation.protocols.template_pooling import TemplateMode, pool_templates
from attfc.evaluation.protocols.template_scores import TEMPLATE_FARS, search_templates, verify_templates
from attfc.evaluation.protocols.templates import TemplateEvaluation, evaluate_templates
from attfc.evaluation.rates import tar_at_far
from attfc.evaluation.report.compare import write_comparison_report
from attfc.evaluation.report.run import write_report
from attfc.evaluation.results import EvaluationResult, compare_results, read_result, save_result
from attfc.evaluation.samples import PairListSample, SearchSample, ShareSample
from attfc.evaluation.tail_sample import TailSample
from attfc.evaluation.unseen import SharedPeople, compare_with_training

__all__ = [
    "ALL_PAIRS_FARS",
    "KNOWN_SETS",
    "TEMPLATE_FARS",
    "AllPairs",
    "AllPairsEvaluation",
    "Embedder",
    "Embeddings",
    "EvaluationResult",
    "HardPairs",
    "HardestPair",
    "HeldOutEvaluation",
    "Identification",
    "Interval",
    "PairEvaluation",
    "PairListSample",
    "PairScores",
    "Pairs",
    "RankOne",
    "Resampled",
    "Roc",
    "SearchSample",
    "ShareSample",
    "SharedPeople",
    "StoreIdentification",
    "TailSample",
    "TemplateEvaluation",
    "TemplateLists",
    "TemplateMode",
    "area_under_roc",
    "compare_results",
    "compare_with_training",
    "embed_store",
    "equal_error_rate",
    "evaluate_all_pairs",
    "evaluate_pair_list",
    "evaluate_pairs",
    "evaluate_scores",
    "evaluate_store",
    "evaluate_templates",
    "find_sets",
    "generate_pairs",
    "identify",
    "identify_in_store",
    "interval_of_difference",
    "pairs_of_set",
    "pool_templates",
    "rank_one",
    "read_groups",
    "read_pairs",
    "read_result",
    "read_template_lists",
    "resample",
    "roc",
    "save_result",
    "score_all_pairs",
    "score_groups",
    "search_templates",
    "tar_at_far",
    "verify_templates",
    "write_comparison_report",
    "write_report",
]
