"""The node cases of onnx itself: a sample in every run, all of them in the sweep."""

import dataclasses

import pytest

from tests.ir.from_onnx.node_cases import EXCLUSIONS, all_cases, exclusion, in_scope, run_case

# One case of each family of operators, those with many options among them twice.
SAMPLE = (
    "test_acos", "test_add_bcast", "test_and_bcast3v1d", "test_argmax_keepdims_example", "test_attention_4d_causal",
    "test_averagepool_2d_pads_count_include_pad", "test_batchnorm_epsilon", "test_bitshift_left_uint16",
    "test_bitwise_xor_ui8_bcast_4v3d", "test_cast_FLOAT_to_FLOAT16", "test_ceil", "test_celu", "test_clip_default_min",
    "test_col2im_pads", "test_concat_2d_axis_negative_1", "test_constantofshape_float_ones",
    "test_conv_with_strides_and_asymmetric_padding", "test_convinteger_with_padding", "test_convtranspose_autopad_same",
    "test_cumsum_1d_exclusive", "test_depthtospace_crd_mode_example", "test_dequantizelinear_axis", "test_dft_axis",
    "test_dynamicquantizelinear", "test_einsum_batch_diagonal", "test_equal_bcast", "test_expand_dim_changed",
    "test_gather_elements_negative_indices", "test_gathernd_example_int32_batch_dim1", "test_gelu_tanh_1",
    "test_gemm_transposeB", "test_gridsample_bicubic", "test_group_normalization_example", "test_gru_seq_length",
    "test_hardmax_axis_1", "test_if", "test_layer_normalization_4d_axis1", "test_logsoftmax_axis_0", "test_loop11",
    "test_lstm_with_peepholes", "test_matmul_4d", "test_maxpool_2d_ceil", "test_mod_mixed_sign_float16",
    "test_nllloss_NCd1d2_with_weight", "test_nonmaxsuppression_two_classes", "test_onehot_with_negative_axis",
    "test_pow_bcast_array", "test_prelu_broadcast", "test_qlinearconv", "test_qlinearmatmul_3D_uint8_float32",
    "test_quantizelinear_blocked_asymmetric", "test_reduce_log_sum_exp_keepdims_example",
    "test_resize_upsample_scales_linear_align_corners", "test_reversesequence_batch", "test_roialign_aligned_false",
    "test_scan9_sum", "test_scatter_elements_with_reduction_max", "test_shape_start_1_end_2",
    "test_simple_rnn_batchwise", "test_slice_neg_steps", "test_softmax_large_number",
    "test_split_variable_parts_2d_opset18", "test_stft_with_window",
    "test_tfidfvectorizer_tf_batch_uniandbigrams_skip5",
    "test_top_k_smallest", "test_transpose_all_permutations_3",
    "test_tril_neg", "test_unique_sorted_with_axis_3d", "test_where_long_example",
)  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case is a test of its own, but collecting them takes seconds: only where the sweep is asked for."""
    if "any_case" in metafunc.fixturenames:
        left_out = "not sweep" in metafunc.config.getoption("markexpr")
        names = (
            [] if left_out else [name for name, case in all_cases().items() if in_scope(case) and not exclusion(case)]
        )
        metafunc.parametrize("any_case", names)


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name):
    outcome = run_case(all_cases()[name])
    assert outcome.status.startswith("passed"), outcome.detail


@pytest.mark.sweep
def test_every_case(any_case):
    outcome = run_case(all_cases()[any_case])
    assert outcome.status.startswith("passed"), outcome.detail


def test_exclusions_are_few_and_each_is_needed():
    excluded = [exclusion(case) for case in all_cases().values() if in_scope(case)]
    assert {entry.reason for entry in EXCLUSIONS} == {reason for reason in excluded if reason}
    assert sum(reason is not None for reason in excluded) < 0.05 * len(excluded)


def test_a_wrong_result_is_seen():
    case = all_cases()["test_softmax_axis_1"]
    ((inputs, outputs),) = case.data_sets
    for wrong in (outputs[0] * 1.01, outputs[0][:, ::-1], outputs[0].astype("float64"), outputs[0][:1]):
        assert run_case(dataclasses.replace(case, data_sets=[(inputs, [wrong])])).status == "failed"
    assert run_case(case).status == "passed"
