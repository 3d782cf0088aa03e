"""AgentMixer inside BenchMARL: the joint policy is trained, the individual modes are evaluated."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
import torchrl.collectors
from torch.distributions import Categorical, Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type

pytest.importorskip("torchrl_agentmixer.benchmarl", reason="needs BenchMARL", exc_type=ImportError)

from benchmarl.algorithms import EnsembleAlgorithmConfig, MappoConfig
from benchmarl.environments import TaskClass, VmasTask
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.hydra_config import reload_experiment_from_file
from benchmarl.models import GruConfig, MlpConfig

from torchrl_agentmixer.benchmarl import AgentMixerConfig, TeamDistribution, _compatibility
from torchrl_agentmixer.distributions import IGCCategorical, IGCMixture, IGCNormal
from torchrl_agentmixer.envs import MatrixGameEnv

ROOT = Path(__file__).parent.parent


class MaskedGame(TaskClass):
    """A game with a state and a masked action of the first agent."""

    def get_env_fun(self, num_envs, continuous_actions, seed, device):
        payoff = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        return lambda: MatrixGameEnv(payoff, num_envs=num_envs, device=device)

    def supports_continuous_actions(self):
        return False

    def supports_discrete_actions(self):
        return True

    def max_steps(self, env):
        return 1

    def has_render(self, env):
        return False

    def group_map(self, env):
        return env.group_map

    def observation_spec(self, env):
        spec = env.observation_spec_unbatched.clone()
        del spec["state"], spec["agents", "action_mask"]
        return spec

    def info_spec(self, env):
        return None

    def state_spec(self, env):
        spec = env.observation_spec_unbatched.clone()
        del spec["agents"]
        return spec

    def action_spec(self, env):
        return env.full_action_spec_unbatched

    def action_mask_spec(self, env):
        spec = env.observation_spec_unbatched.clone()
        del spec["state"], spec["agents", "observation"]
        return spec

    @staticmethod
    def env_name():
        return "games"


def masked_game():
    return MaskedGame("masked_game", {})


def vmas(name="balance"):
    task = VmasTask[name.upper()].get_from_yaml()
    task.config["max_steps"] = 5
    return task


def settings(tmp_path, continuous=True, **changes):
    config = ExperimentConfig.get_from_yaml()
    config.prefer_continuous_actions = continuous
    config.max_n_frames, config.max_n_iters = None, 2
    config.on_policy_collected_frames_per_batch = config.evaluation_interval = 40
    config.on_policy_n_envs_per_worker = 4
    config.on_policy_n_minibatch_iters = 1
    config.on_policy_minibatch_size = 20
    config.evaluation_episodes = 2
    config.render, config.loggers, config.save_folder = False, [], str(tmp_path)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def algorithm(**changes):
    """AgentMixer with a Policy Modifier that runs, in the first half of a test."""
    config = AgentMixerConfig.get_from_yaml()
    config.strength = {"start": 3.0, "end": 0.0, "until": 0.5}
    for name, value in changes.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    return config


def experiment(tmp_path, continuous=True, task=None, model=MlpConfig, config=None, **changes):
    return Experiment(
        task=task or vmas(),
        algorithm_config=config or algorithm(),
        model_config=model.get_from_yaml(),
        seed=0,
        config=settings(tmp_path, continuous, **changes),
    )


@pytest.mark.parametrize("version", ["1.5.1", "1.6.0"])
def test_other_versions_are_refused(monkeypatch, version):
    monkeypatch.setattr(_compatibility, "version", lambda name: version)
    with pytest.raises(ImportError, match=rf">=1\.5\.2,<1\.6, got {version}.*--no-deps benchmarl"):
        _compatibility.load_benchmarl()


def test_missing_benchmarl_says_how_to_install_it(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_compatibility, "version", missing)
    with pytest.raises(ImportError, match=r"torchrl_agentmixer\[benchmarl\]"):
        _compatibility.load_benchmarl()


def test_torchrl_is_left_as_it_was():
    assert not hasattr(torchrl.collectors, "SyncDataCollector")


def test_default_config_is_complete_and_keeps_mappos_values():
    config = AgentMixerConfig.get_from_yaml()
    for name, value in vars(MappoConfig.get_from_yaml()).items():
        assert getattr(config, name) == value


@pytest.mark.parametrize("kind", ["normal", "categorical", "mixture"])
def test_team_distribution(kind):
    torch.manual_seed(0)
    logits, noise = torch.randn(50, 3, 4), 9 * torch.randn(50, 3, 2, 4)
    joint, individual = {
        "normal": (IGCNormal(logits, logits.exp()), logits),
        "categorical": (IGCCategorical(logits, noise[:, :, 0]), logits.argmax(-1)),
        "mixture": (IGCMixture(logits, noise, torch.zeros(50, 2)), logits.argmax(-1)),
    }[kind]
    team = TeamDistribution(joint)
    assert team.sample().shape == joint.sample().shape
    assert (team.deterministic_sample == individual).all()
    if kind != "normal":
        assert (joint.mode != individual).any()
    action = team.sample()
    for mine, theirs in (
        (team.log_prob(action), joint.log_prob(action)),
        (team.entropy(), joint.entropy()),
    ):
        assert mine.shape == team.batch_shape == (50, 3)
        assert (mine == theirs.unsqueeze(-1)).all()


def first_batch(run):
    return run.algorithm.process_batch("agents", next(iter(run.collector)))


def test_continuous_log_prob_is_the_teams(tmp_path):
    config = algorithm(use_tanh_normal=False, num_components=0, strength=None)  # a joint scale
    run = experiment(tmp_path, config=config)
    batch = first_batch(run)["agents"]
    expected = Normal(batch["loc"], batch["joint_scale"]).log_prob(batch["action"]).sum((-2, -1))
    assert batch["log_prob"].shape == batch.batch_size == (4, 10, 4)
    torch.testing.assert_close(batch["log_prob"], expected.unsqueeze(-1).expand(4, 10, 4))


def test_discrete_log_prob_is_the_teams(tmp_path):
    config = algorithm(strength=0.0)  # the product of the individual policies
    batch = first_batch(experiment(tmp_path, False, config=config))["agents"]
    expected = Categorical(logits=batch["logits"]).log_prob(batch["action"]).sum(-1)
    torch.testing.assert_close(batch["log_prob"], expected.unsqueeze(-1).expand(4, 10, 4))


@pytest.mark.parametrize("continuous", [True, False])
def test_first_ratio_is_one(tmp_path, continuous):
    run = experiment(tmp_path, continuous)
    losses = run.losses["agents"](first_batch(run).reshape(-1))
    assert losses["max_ratio"].item() == pytest.approx(1, abs=1e-4)
    assert losses["clip_fraction"].item() == 0


@pytest.mark.parametrize("optimism", [0.0, 0.75])
def test_the_team_has_one_advantage(tmp_path, optimism):
    """Agents of `navigation` have individual rewards."""
    config = algorithm(share_param_critic=False, optimism=optimism)
    run = experiment(tmp_path, task=vmas("navigation"), config=config)
    batch = next(iter(run.collector))
    theirs = super(type(run.algorithm), run.algorithm).process_batch("agents", batch.clone())
    theirs = theirs["agents", "advantage"]
    advantage = run.algorithm.process_batch("agents", batch)["agents", "advantage"]
    assert theirs.std(-2).max() > 1e-3
    team = theirs.mean(-2, keepdim=True)
    team = (team - team.mean()) / team.std()
    team = torch.where(team < 0, (1 - optimism) * team, team)
    torch.testing.assert_close(advantage, team.expand_as(theirs))


@pytest.mark.parametrize("model", [MlpConfig, GruConfig])
def test_modifier_has_its_own_learning_rate(tmp_path, model):
    run = experiment(tmp_path, model=model, config=algorithm(lr_modifier=0.125))
    actor, modifier = run.optimizers["agents"]["loss_objective"].param_groups
    assert (actor["lr"], modifier["lr"]) == (run.config.lr, 0.125)
    policy = run.algorithm.policies["agents"]
    assert set(modifier["params"]) == set(policy.modifier.parameters())
    trained = set(run.losses["agents"].actor_network_params.values(True, True))
    trained = {p for p in trained if p.requires_grad}
    assert {*actor["params"], *modifier["params"]} == trained
    assert len(actor["params"]) + len(modifier["params"]) == len(trained)


def test_a_modifier_that_does_not_learn_stays(tmp_path):
    run = experiment(tmp_path, False, config=algorithm(lr_modifier=0.0))
    policy = run.algorithm.policies["agents"]
    before = copy.deepcopy(policy.state_dict())
    run.run()
    changed = {key for key, value in policy.state_dict().items() if (value != before[key]).any()}
    own = {id(parameter) for parameter in policy.modifier.parameters()}
    modifier = {name for name, value in policy.named_parameters() if id(value) in own}
    assert modifier <= set(before)
    assert any("mlp" in name for name in changed)
    assert not changed & modifier


@pytest.mark.parametrize(("continuous", "lr"), [(True, 1e-3), (False, 5e-3)])
def test_default_learning_rate_of_the_modifier(tmp_path, continuous, lr):
    run = experiment(tmp_path, continuous)
    assert run.optimizers["agents"]["loss_objective"].param_groups[1]["lr"] == lr


def test_evaluation_runs_the_individual_modes(tmp_path):
    run = experiment(tmp_path, False)
    data = run.test_env.rollout(5)
    deployed = run.algorithm.decentralized()
    assert deployed.in_keys == [("agents", "observation")]
    action = deployed(data.copy())["agents", "action"]
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        evaluated = run.policy(data.copy())
    assert (evaluated["agents", "action"] == action).all()
    joint = run.algorithm.policies["agents"].get_dist(data.copy())
    assert (joint.mode != action).any()


def test_evaluated_returns_are_the_decentralized_policys(tmp_path):
    run = experiment(tmp_path, False, evaluation_static=True)
    run.evaluate()
    steps = json.loads(run.logger.json_writer.path.read_text())
    returns = steps["vmas"]["balance"]["agentmixer"]["seed_0"]["step_0"]["return"]
    run.test_env.set_seed(0)
    rollout = run.test_env.rollout(5, run.algorithm.decentralized(), break_when_any_done=False)
    expected = rollout["next", "agents", "reward"].sum(1).mean((-2, -1))
    torch.testing.assert_close(torch.tensor(returns), expected, check_dtype=False)


@pytest.mark.parametrize("model", [MlpConfig, GruConfig])
@pytest.mark.parametrize("kind", ["continuous", "discrete", "masked"])
def test_trains_anneals_and_restores(tmp_path, kind, model):
    task = masked_game() if kind == "masked" else vmas()
    run = experiment(tmp_path, kind == "continuous", task, model, checkpoint_at_end=True)
    policy = run.algorithm.policies["agents"]
    if kind != "continuous":
        assert policy.coefficients.strength == 3.0
    run.run()
    if kind != "continuous":
        assert policy.coefficients.strength == 0.0
    (file,) = tmp_path.glob("*/checkpoints/*.pt")
    restored = Experiment.reload_from_file(str(file))
    assert (restored.total_frames, restored.n_iters_performed) == (80, 2)
    assert len(restored.callbacks) == 1
    mine, theirs = run.losses["agents"].state_dict(), restored.losses["agents"].state_dict()
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        if isinstance(value, torch.Tensor) and not value.is_meta:
            assert (value == theirs[key]).all(), key
    restored.config.max_n_iters = 3
    restored.evaluate()
    restored.close()


def test_masks_and_state_are_read(tmp_path):
    run = experiment(tmp_path, task=masked_game())
    batch = next(iter(run.collector))
    assert batch["agents", "action"][..., 0].max() == 1  # never the third
    assert batch["agents", "action"][..., 1].max() == 2
    assert batch["agents_modifier_state"].shape == (4, 10, 1)
    assert set(run.algorithm.decentralized().in_keys) == {
        ("agents", "observation"),
        ("agents", "action_mask"),
    }


def test_without_a_state_the_modifier_reads_all_observations(tmp_path):
    batch = next(iter(experiment(tmp_path).collector))
    expected = batch["agents", "observation"].flatten(-2)
    assert (batch["agents_modifier_state"] == expected).all()


def test_benchmark_with_mappo(monkeypatch, capsys):
    """The script of ``docs/benchmarl.md``: a ``Benchmark`` with both algorithms."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("benchmarl_tasks")
    sizes = ["--tasks", "balance", "--seeds", "0", "--frames", "100", "--batch", "100"]
    monkeypatch.setattr(sys, "argv", ["benchmarl_tasks.py", *sizes])
    script.main()
    output = capsys.readouterr().out
    for name in ("agentmixer", "mappo"):
        (row,) = [line for line in output.splitlines() if line.startswith(f"| `balance` | {name}")]
        _, _, _, each, mean, speed, _ = row.split("|")
        assert float(each) == float(mean) < 0 < float(speed)


def test_in_an_ensemble(tmp_path):
    """Ensemble of two groups: predators with AgentMixer, prey with MAPPO."""
    config = EnsembleAlgorithmConfig(
        {"adversary": algorithm(), "agent": MappoConfig.get_from_yaml()}
    )
    run = experiment(tmp_path, False, task=vmas("simple_tag"), config=config)
    run.run()
    mixer = run.algorithm.algorithms_map["adversary"]
    assert list(mixer.policies) == ["adversary"]
    assert mixer.policies["adversary"].coefficients.strength == 0.0


def test_every_group_is_a_team(tmp_path):
    run = experiment(tmp_path, False, task=vmas("simple_tag"))
    batch = next(iter(run.collector))
    for group, sizes in {"adversary": 3, "agent": 1}.items():
        processed = run.algorithm.process_batch(group, batch.clone()).reshape(-1)
        assert run.losses[group](processed)["max_ratio"].item() == pytest.approx(1, abs=1e-4)
        assert run.algorithm.policies[group].modifier.groups[0].n_agents == sizes
    assert {("adversary", "action"), ("agent", "action")} <= set(
        run.algorithm.decentralized().out_keys
    )


def test_callbacks_of_the_user_are_left_alone(tmp_path):
    mine: list = []
    Experiment(
        task=vmas(),
        algorithm_config=algorithm(),
        model_config=MlpConfig.get_from_yaml(),
        seed=0,
        config=settings(tmp_path),
        callbacks=mine,
    )
    assert mine == []


def test_hydra(tmp_path):
    options = settings(tmp_path, checkpoint_at_end=True)
    names = ("max_n_frames", "max_n_iters", "on_policy_collected_frames_per_batch", "render")
    names += ("on_policy_n_minibatch_iters", "evaluation_interval", "loggers", "checkpoint_at_end")
    values = {name: getattr(options, name) for name in names}
    overrides = [f"experiment.{k}={'null' if v is None else v}" for k, v in values.items()]
    command = [sys.executable, "-W", "ignore", "-m", "torchrl_agentmixer.benchmarl"]
    command += [
        "algorithm=agentmixer",
        "algorithm.strength={start: 3.0, end: 0.0, until: 0.25}",
        "experiment.prefer_continuous_actions=False",
        "task=vmas/balance",
    ]
    command += ["task.max_steps=5", f"hydra.run.dir={tmp_path}/run", *overrides]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.glob("run/*/checkpoints/*.pt")
    restored = reload_experiment_from_file(str(file))
    assert restored.total_frames == 80
    assert restored.algorithm_config.strength == {"start": 3.0, "end": 0.0, "until": 0.25}
