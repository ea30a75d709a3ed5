"""The recipe's environment beside the launcher's."""

from tasks.trainer_spec import with_own


def test_a_recipes_path_comes_after_what_slime_needs_and_its_other_variables_win() -> None:
    launched = {"PYTHONPATH": "/megatron:/home", "NCCL_NVLS_ENABLE": "1"}
    both = with_own(launched, {"PYTHONPATH": "/mine", "NCCL_NVLS_ENABLE": "0", "X": "y"})
    assert both == {"PYTHONPATH": "/megatron:/home:/mine", "NCCL_NVLS_ENABLE": "0", "X": "y"}
    assert with_own({}, {"PYTHONPATH": "/mine"}) == {"PYTHONPATH": "/mine"}
