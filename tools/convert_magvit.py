"""Names of the official MAGVIT code <-> magvid's. The 3D-VQ models have the same names and need no rule; the
transformer has clearer ones.
"""

TRANSFORMER = [
    (r"BertEmbed_0/word_embeddings/embedding", r"words/embedding"),
    (r"BertEmbed_0/position_embeddings/embedding", r"positions"),
    (r"BertEmbed_0/embeddings_ln/(scale|bias)", r"embedding_norm/\1"),
    (
        r"BertLayer_(\d+)/BertAttention_0/self_attention/(query|key|value|out)/(kernel|bias)",
        r"block_\1/attention/\2/\3",
    ),
    (r"BertLayer_(\d+)/BertAttention_0/attention_output_ln/(scale|bias)", r"block_\1/attention_norm/\2"),
    (r"BertLayer_(\d+)/BertMlp_0/intermediate_output/(kernel|bias)", r"block_\1/mlp_in/\2"),
    (r"BertLayer_(\d+)/BertMlp_0/layer_output/(kernel|bias)", r"block_\1/mlp_out/\2"),
    (r"BertLayer_(\d+)/BertMlp_0/layer_output_ln/(scale|bias)", r"block_\1/mlp_norm/\2"),
    (r"BertMlmLayer_0/mlm_dense/(kernel|bias)", r"head/\1"),
    (r"BertMlmLayer_0/mlm_ln/(scale|bias)", r"head_norm/\1"),
    (r"BertMlmLayer_0/mlm_bias/bias", r"head_bias"),
]
"""Official transformer -> magvid.models.transformer, for `tools.rules.rename`."""

CAUSAL = [
    (r"Embed_0/embedding", r"words/embedding"),
    (r"PositionEmbeddings_0/embed_pos", r"positions"),
    (r"VTNLayer_(\d+)/LayerNorm_0/(scale|bias)", r"block_\1/attention_norm/\2"),
    (r"VTNLayer_(\d+)/SelfAttention_0/(query|key|value|out)/kernel", r"block_\1/attention/\2/kernel"),
    (r"VTNLayer_(\d+)/LayerNorm_1/(scale|bias)", r"block_\1/mlp_norm/\2"),
    (r"VTNLayer_(\d+)/MlpBlock_0/Dense_0/(kernel|bias)", r"block_\1/mlp_in/\2"),
    (r"VTNLayer_(\d+)/MlpBlock_0/Dense_1/(kernel|bias)", r"block_\1/mlp_out/\2"),
    (r"decoder_out_ln/(scale|bias)", r"norm/\1"),
    (r"logits_dense/(kernel|bias)", r"head/\1"),
]
"""Official `TransformerLM` (untied) -> magvid.models.causal; the positions lose their leading axis of 1."""
