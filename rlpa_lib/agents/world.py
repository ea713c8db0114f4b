"""What other rooms use of the miniature. Only this module imports it from outside `mini`, so another world
can replace it: a run needs only the names below and the functions in settings.kinds."""

from rlpa_lib.mini.attacks import PERSONA, TOLD, situation
from rlpa_lib.mini.language import paraphrase_freely, paraphrase_value
from rlpa_lib.mini.lexicon import are_compatible, change_value, normalise, same_value
from rlpa_lib.mini.play import collect_responses, play_crowd, select_personal
from rlpa_lib.mini.teacher import write_oracle_reply, write_pair
from rlpa_lib.mini.world import WEIGHTS, make_evaluation_judge, make_reward_judge

__all__ = [
    "PERSONA", "TOLD", "WEIGHTS", "are_compatible", "change_value", "list_floor_responses",
    "make_evaluation_judge", "make_reward_judge", "normalise", "paraphrase_freely", "paraphrase_value",
    "play_crowd", "same_value", "situation", "write_oracle_reply", "write_pair",
]  # fmt: skip


def list_floor_responses() -> tuple[str, ...]:
    """What scripted assistants once said about one user: well formed, and wrong for any other."""
    return select_personal(collect_responses())
