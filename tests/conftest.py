"""What tests of several folders use."""

from __future__ import annotations

import io
import logging
import runpy
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

# Tests that take long, beside shorter ones of the same code: `make soak` runs them.
LONG = (
    "algorithms/test_conformance.py::test_remembers_a_cue[ail]",
    "algorithms/test_conformance.py::test_remembers_a_cue[armappo]",
    "algorithms/test_conformance.py::test_remembers_a_cue[happo]",
    "algorithms/test_conformance.py::test_remembers_a_cue[ippo]",
    "algorithms/test_conformance.py::test_remembers_a_cue[ma",  # all but agent_mixer
    "algorithms/test_conformance.py::test_solves_a_coordination_game[ail]",
    "algorithms/test_conformance.py::test_solves_a_coordination_game[armappo]",
    "algorithms/test_conformance.py::test_solves_a_coordination_game[happo]",
    "algorithms/test_conformance.py::test_solves_a_coordination_game[ma",  # maven, mat, magpo, ...
    "algorithms/test_happo.py::test_small_steps_never_lower_the_expected_payoff[payoff1]",
    "algorithms/test_magpo.py::test_the_guider_stays_where_its_learners_can_follow",
    "algorithms/test_mat.py::test_learns_continuous_actions[mat_dec]",
    "algorithms/test_maven.py::TestHierarchicalPolicy::test_the_latent_carries",
    "algorithms/test_sac.py::TestLearning::test_agents_learn_to_add_up[hasac]",
    "algorithms/test_sac.py::TestLearning::test_agents_learn_to_add_up[masac]",
    "diagnostics/test_exploitability.py::test_bounds_of_a_correlated_policy[1",
    "diagnostics/test_exploitability.py::test_bridge[passages2",
    "diagnostics/test_exploitability.py::test_continuous_actions[True]",
    "distributions/test_compiled.py::test_mixture_of_groups",
    "envs/test_conformance.py::test_resume_from_a_simulation_state[vmas/give_way]",
    "envs/test_conformance.py::test_resume_from_a_simulation_state[vmas/passage]",
    "envs/test_conformance.py::test_same_seed_same_trajectories[vmas/give_way]",
    "envs/test_conformance.py::test_same_seed_same_trajectories[vmas/passage]",
    "envs/test_conformance.py::test_time_limits_truncate_and_ends_terminate[vmas/passage]",
    "envs/test_conformance.py::test_two_hundred_random_steps[vmas no respawn]",
    "envs/test_conformance.py::test_two_hundred_random_steps[vmas/give_way]",
    "envs/test_conformance.py::test_two_hundred_random_steps[vmas/passage]",
    "envs/test_mamujoco_physics.py::test_images_equal_those_of_gymnasium[ant_4x2",
    "envs/test_mamujoco_physics.py::test_images_equal_those_of_gymnasium[half_cheetah_6x1",
    "envs/test_mamujoco_physics.py::test_images_equal_those_of_gymnasium[humanoid_9_8-loop]",
    "envs/test_mamujoco_physics.py::test_threads_and_the_loop_are_equal[ant_2x4",
    "envs/test_mamujoco_physics.py::test_threads_and_the_loop_are_equal[ant_8x1",
    "envs/test_mamujoco_physics.py::test_threads_and_the_loop_are_equal[humanoid_17x1",
    "envs/test_mamujoco_physics.py::test_threads_and_the_loop_are_equal[humanoid_standup",
    "envs/test_mamujoco_physics.py::test_threads_and_the_loop_are_equal[many_segment_ant_2x3",
    "envs/test_mamujoco_physics.py::test_threads_and_the_loop_are_equal[many_segment_swimmer_10x2",
    "envs/test_mamujoco_physics.py::test_threads_and_the_loop_are_equal[walker2d_6x1",
    "envs/test_smacv2.py::test_conformance_of[test_two_hundred_random_steps-smacv2/t",
    "envs/test_smacv2.py::test_conformance_of[test_two_hundred_random_steps-smacv2/z",
    "envs/test_smacv2.py::test_worker_processes",
    "envs/test_smax.py::test_compilation_cache_on_disk",
    "export/test_episodes.py::test_full_episodes[mamujoco/humanoid_9_8]",
    "export/test_episodes.py::test_full_episodes[memory/recall]",
    "export/test_episodes.py::test_full_episodes[vmas/simple_tag]",
    "export/test_export_decentralized.py::test_one_file_equals_the_files_of_agents[tanh_team",
    "policies/test_with_torchrl.py::test_compiled_policy[both_kinds]",
    "policies/test_with_torchrl.py::test_compiled_policy[two_discrete]",
    "test_benchmarks.py::test_beside_benchmarl",
    "test_benchmarks.py::test_mamujoco",
    "test_benchmarl.py::test_benchmark_with_mappo",
    "test_distributed.py::test_a_run_of_two_ranks_and_its_continuation[maven]",
    "test_distributed.py::test_torchrun[1]",
    "test_distributed.py::test_torchrun[2]",
    "test_docs.py::test_code_runs[docs/equilibrium_gaps.md]",
    "test_docs.py::test_code_runs[docs/smacv2.md]",
    "test_examples.py::test_existing_script[plain_mappo_agentmixer-discrete]",
    "test_examples.py::test_pictures",
    "test_sweep.py::test_a_run_that_fails_leaves_the_others_and_no_folder_is_shared",
    "test_sweep.py::test_jobs_as_slurm_has_them",
    "training/test_checkpointing.py::test_a_damaged_checkpoint_is_reported_and_skipped[empty]",
    "training/test_checkpointing.py::test_a_damaged_checkpoint_is_reported_and_skipped[truncate]",
    "training/test_checkpointing.py::test_a_resumed_run_equals_an_uninterrupted_one[ail]",
    "training/test_checkpointing.py::test_a_resumed_run_equals_an_uninterrupted_one[grid, memory]",
    "training/test_checkpointing.py::test_a_resumed_run_equals_an_uninterrupted_one[hasac]",
    "training/test_checkpointing.py::test_a_resumed_run_equals_an_uninterrupted_one[mamujoco",
    "training/test_checkpointing.py::test_a_resumed_run_equals_an_uninterrupted_one[mat]",
    "training/test_checkpointing.py::test_a_resumed_run_equals_an_uninterrupted_one[matrix]",
    "training/test_checkpointing.py::test_a_resumed_run_equals_an_uninterrupted_one[recall]",
    "training/test_checkpointing.py::test_a_resumed_run_equals_an_uninterrupted_one[two groups]",
    "training/test_checkpointing.py::test_sigterm_and_sigint_save_a_checkpoint[2-130]",
    "training/test_collection.py::test_ray",
    "training/test_other_environments.py::test_trains_evaluates_resumes_and_exports[ParallelEnv",
)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(LONG):
            item.add_marker(pytest.mark.soak)


@pytest.fixture
def compiled(monkeypatch):
    """What ``torch.compile`` was called with; it compiles to the operations of eager mode.

    Backward passes are traced, too.
    """
    torch._dynamo.reset()
    calls, compile_ = [], torch.compile

    def traced(function, *args, **kwargs):
        calls.append(function)
        return compile_(function, backend="aot_eager_decomp_partition")

    monkeypatch.setattr(torch, "compile", traced)
    return calls


@pytest.fixture
def run_script(monkeypatch):
    """``python script arguments``, in this process, which has imported torch already.

    Returns what it printed; ``ok`` is whether it is to succeed.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # Hydra sets others
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(script, *arguments, ok=True):
        path, printed, code = ROOT / script, io.StringIO(), 0
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        # Hydra closes all there are, and absl's, where a test imported it, closes pytest's stream.
        monkeypatch.setattr(logging, "_handlerList", [])
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:
                code = end.code
        assert (not code) == ok, f"{printed.getvalue()}{code}"
        return printed.getvalue()

    yield run
    root.handlers[:], root.level = handlers, level
    for number, handler in signals.items():
        signal.signal(number, handler)
