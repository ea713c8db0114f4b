"""Credit schemes against numbers worked out by hand."""

import pytest
import torch

from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.ppo import Place
from rlpa_lib.settings import config
from rlpa_lib.settings.schema import PPO


def near(values):
    return pytest.approx(values, abs=1e-6)


def settings(**changes):
    return PPO(
        **{
            "gamma": 1.0, "lam": 1.0, "turn_discount": 0.5, "turn_lam": 0.5, "update_every": "dialogue",
            **changes,
        }
    )


def look(places, rewards, before, after, spans=None, **changes):
    return ppo.look_ahead(
        places, rewards_S=rewards, spans_S=spans or [1.0] * len(places), before_S=before, after_S=after,
        settings=settings(**changes),
    )


def test_turn_level_gae_by_hand():
    # three turns, discount and lambda .5. The last leads to .5 * .8 = .4, so A3 = 2 + .4 - .4 = 2
    # turn 2 leads to .5 (.4 + .5*2) = .7, A2 = 0 + .7 - .6 = .1; turn 1 to .5 (.6 + .5*.1) = .325, A1 = 1 +
    # .325 - .5
    places = [Place("d", t, True, at_limit=t == 3) for t in (1, 2, 3)]
    futures, worths = look(places, [1.0, 0.0, 2.0], [0.5, 0.6, 0.4], [9.0, 9.0, 0.8])
    assert futures == near([0.325, 0.7, 0.4])
    assert worths[:2] == near([0.65, 1.4]) and worths[2] is None
    # and as generalised advantages of a whole episode: A1 = .825 is GAE over the turns with the last reward 2
    # + .4
    assert ppo.gae([1, 0, 2.4], [0.5, 0.6, 0.4], 0.5, 0.5) == near([0.825, 0.1, 2.0])


def test_nothing_follows_the_last_turn_when_the_limit_ends_the_dialogue():
    places = [Place("d", 1, True), Place("d", 2, True, at_limit=True)]
    futures, worths = look(
        places, [1.0, 2.0], [0.0, 0.0], [9.0, 9.0], turn_limit="end", turn_lam=1.0, turn_discount=0.9
    )
    assert futures == near([1.8, 0.0])  # eq. 1: 1 + .9 * 2


def test_order_of_samples_does_not_matter():
    places = [Place("b", 2, True), Place("a", 1, True), Place("b", 1, True), Place("a", 2, True)]
    futures, worths = look(places, [3.0, 0.0, 0.0, 1.0], [0.0] * 4, [0.0] * 4, turn_lam=1.0)
    assert futures == near([0.0, 0.5, 1.5, 0.0])


def test_dialogues_are_linked_by_id_never_by_position():
    places = [Place("a", 1, True), Place("b", 2, True), Place("a", 3, True)]
    futures, worths = look(places, [0.0, 5.0, 7.0], [0.0] * 3, [0.1, 0.2, 0.3])
    assert futures == near([0.05, 0.1, 0.15]) and worths == [None] * 3


def test_a_sample_that_did_not_go_on_leads_to_the_value_after_it():
    places = [
        Place("d", 1, False), Place("d", 1, True), Place("d", 2, True, True), Place("d", 2, False, True),
    ]
    futures, worths = look(places, [0.0, 0.0, 1.0, 0.0], [0.2, 0.2, 0.4, 0.4], [0.6, 99.0, 0.0, 0.8])
    # A of the continued turn 2: 1 + 0 - .4 = .6; turn 1 leads to .5 (.4 + .5*.6); its sibling to .5 * .6
    assert futures == near([0.3, 0.35, 0.0, 0.4])
    assert worths == [None, near(0.7), None, None]


def test_two_continuations_of_one_turn_are_refused():
    with pytest.raises(ValueError, match="two samples"):
        look([Place("d", 1, True), Place("d", 1, True)], [0.0] * 2, [0.0] * 2, [0.0] * 2)


def padded(*rows):
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rows])


def test_tokens_and_turns_by_hand():
    # turn 1: two tokens, values .5 .6, after it .9; turn 2: three tokens, values .4 .3 .2, after it .8. gamma
    # .5, lam .5 at tokens
    values = padded([0.5, 0.6, 0.9], [0.4, 0.3, 0.2, 0.8])
    rewards = padded([0.1, 1.0], [0.0, 0.0, 2.0, 0.0])
    keep = torch.tensor([[True, True, False, False], [True, True, True, False]])
    places = [Place("d", 1, True), Place("d", 2, True, True)]
    done = ppo.assign_credit(
        rewards, values, keep, places, settings(gamma=0.5, lam=0.5, turn_discount=0.8, turn_lam=0.5)
    )
    # turn 2 leads to .8 * .8 = .64. Seen from its first token: A2 = .25 * 2 + .25 * .64 - .4 = .26
    # turn 1 leads to .8 (.4 + .5 * .26) = .424, worth .53
    # tokens of turn 2, last to first: 2 + .64 - .2 = 2.44; .5*.2 - .3 + .25*2.44 = .41; .5*.3 - .4 + .25*.41
    # = -.1475
    # tokens of turn 1: 1 + .424 - .6 = .824; .1 + .5*.6 - .5 + .25*.824 = .106
    assert done.advantages_ST[0].tolist() == near([0.106, 0.824, 0.0, 0.0])
    assert done.advantages_ST[1].tolist() == near([-0.1475, 0.41, 2.44, 0.0])
    # the third is the target of the state after turn 1
    assert done.returns_ST[0].tolist() == near([0.606, 1.424, 0.53, 0.0])
    assert done.returns_ST[1, :3].tolist() == near([0.2525, 0.71, 2.64])
    assert done.taught_ST.tolist() == [[True, True, True, False], [True, True, True, False]]


def test_with_all_lambdas_one_the_first_token_gets_eq_1():
    rewards, values = padded([0.0, 1.0, 0.0], [0.5, 0.0]), torch.zeros(2, 3)
    keep = torch.tensor([[True, True, False], [True, False, False]])
    done = ppo.assign_credit(
        rewards, values, keep, [Place("d", 1, True), Place("d", 2, True, True)],
        settings(turn_lam=1.0, turn_discount=0.9),
    )
    assert done.returns_ST[:, 0].tolist() == near([1 + 0.9 * 0.5, 0.5])


def test_token_level_and_turn_level_advantages_agree_at_the_first_token():
    torch.manual_seed(0)
    rewards, values = torch.randn(4, 6), torch.randn(4, 6)
    keep = torch.arange(6) < torch.tensor([5, 2, 4, 1])[:, None]
    places = [Place("d", t, True, t == 4) for t in (1, 2, 3, 4)]
    done = ppo.assign_credit(
        rewards, values, keep, places, settings(turn_discount=0.7, turn_lam=0.3)
    )
    R = [float((rewards[i] * keep[i]).sum()) for i in range(4)]
    R[3] += 0.7 * float(values[3, 1])
    assert done.advantages_ST[:, 0].tolist() == near(ppo.gae(R, values[:, 0], 0.7, 0.3).tolist())


def test_the_bandit_ignores_what_comes_later():
    torch.manual_seed(1)
    rewards, values, keep = torch.randn(2, 3), torch.randn(2, 3), torch.ones(2, 3).bool()
    places = [Place("d", 1, True), Place("d", 2, True)]
    alone = ppo.assign_credit(rewards, values, keep, places, settings(turn_discount=0.0, lam=0.9))
    rewards[1] += 100
    again = ppo.assign_credit(rewards, values, keep, places, settings(turn_discount=0.0, lam=0.9))
    assert torch.equal(alone.advantages_ST[0], again.advantages_ST[0])
    assert alone.advantages_ST[0].tolist() == near(ppo.gae(rewards[0], values[0], 1.0, 0.9).tolist())
    assert torch.equal(alone.returns_ST, alone.advantages_ST + values)


def test_a_vanishing_discount_is_the_bandit():
    torch.manual_seed(2)
    rewards, values = torch.randn(3, 4), torch.randn(3, 5)
    keep = torch.arange(5) < torch.tensor([4, 2, 3])[:, None]
    rewards = torch.nn.functional.pad(rewards, (0, 1))
    places = [Place("d", t, True) for t in (1, 2, 3)]
    linked = ppo.assign_credit(rewards, values, keep, places, settings(turn_discount=1e-300, lam=0.9))
    single = ppo.assign_credit(rewards, values * keep, keep, places, settings(turn_discount=0.0, lam=0.9))
    assert torch.equal(linked.advantages_ST, single.advantages_ST)


def test_a_baseline_of_samples_by_hand():
    # one dialogue of two turns and two samples each, the first of each goes on; discount .5, no KL
    places = [Place("d", 1, True), Place("d", 1, False)]
    places += [Place("d", 2, True, True), Place("d", 2, False, True)]
    rewards, keep = torch.tensor([[1.0, 0], [3, 0], [2, 0], [4, 0]]), torch.tensor([[True, False]] * 4)
    values = ppo.baseline_values(rewards, keep, places, 0.5)
    # V(2) = 3; tokens of turn 1 have the sibling's reward + .5 * 3, the state after it 3; behind turn 2: 0
    assert values.tolist() == [[4.5, 3.0], [2.5, 3.0], [4.0, 0.0], [2.0, 0.0]]
    advantages, returns, _ = ppo.assign_credit(
        rewards, values, keep, places, settings(turn_lam=1.0, turn_limit="end")
    )
    # the sample that went on met 2 where turn 2 brings 3 on average: 1 + .5 * 2 - 4.5
    # its sibling: 3 + .5 * 3 - 2.5
    assert advantages[:, 0].tolist() == [-2.5, 2.0, -2.0, 2.0]
    assert returns[:, 0].tolist() == [2.0, 4.5, 2.0, 4.0]


def test_a_baseline_of_samples_under_the_bandit_is_leave_one_out():
    places = [Place("a", 1, True), Place("a", 1, False), Place("a", 1, False), Place("b", 1, True)]
    rewards = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 6.0], [0.0, 5.0]])
    keep = torch.ones(4, 2, dtype=torch.bool)
    values = ppo.baseline_values(rewards, keep, places, 0.0)
    assert values[:, 0].tolist() == [4.0, 3.5, 1.5, 3.0]  # "b" is alone: the mean of the turn's others
    advantages, *_ = ppo.assign_credit(rewards, values, keep, places, settings(turn_discount=0.0))
    assert advantages[:, 0].tolist() == [-3.0, -1.5, 4.5, 2.0]


@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
@pytest.mark.parametrize(("discount", "lengths"), [(0.0, (1, 4, 2, 3)), (0.9, (3, 3, 3, 3))])
def test_equal_rewards_leave_no_advantage_over_a_baseline_of_samples(discount, lengths, lam):
    """Whatever the credit scheme: also where tokens are discounted, and in a turn of one sample."""
    places = [Place(d, turn, d != "b") for d in "ab" for turn in (1, 2)]
    sizes = torch.tensor(lengths)
    keep = torch.arange(5) < sizes[:, None]
    rewards = torch.zeros(4, 5)
    rewards[torch.arange(4), sizes - 1] = 1.0
    changes = {"gamma": 0.9, "lam": lam, "turn_discount": discount, "turn_lam": lam}
    values = ppo.baseline_values(rewards, keep, places, discount, 0.9)
    advantages = ppo.assign_credit(rewards, values, keep, places, settings(**changes)).advantages_ST
    assert torch.allclose(advantages, torch.zeros(4, 5), atol=1e-6)


def test_what_explains_the_advantages():
    places = [Place("a", 1, True), Place("a", 1, False), Place("b", 1, True), Place("b", 1, False)]
    keep, rewards = torch.ones(4, 1, dtype=torch.bool), torch.tensor([0.0, 1.0, 1.0, 0.0])
    coin = ppo.explain_advantages(torch.tensor([[2.0], [-2], [2], [-2]]), keep, places, rewards)
    own = ppo.explain_advantages(rewards[:, None] * 3, keep, places, rewards)
    assert coin == near({"advantage_by_reward": 0.0, "advantage_by_coin": 1.0})
    assert own == near({"advantage_by_reward": 1.0, "advantage_by_coin": 0.0})


def test_the_papers_lambda_lets_the_profile_block_hear_of_the_reward():
    """160 tokens, the reward on the last: at the release's lambda the first 40, where the profile block
    stands, get .95^159 to .95^120 of its advantage, 1/470 at most."""
    reward, zeros = [0.0] * 159 + [1.0], [0.0] * 160
    shares = {}
    for scale in ("paper", "released"):
        cfg = config.load_config(scale).ppo
        advantages = ppo.gae(reward, zeros, cfg.gamma, cfg.lam)
        shares[scale] = advantages[39] / advantages[-1]
    assert shares == {"paper": 1.0, "released": pytest.approx(0.95**120)} and 0.95**120 < 1 / 400
