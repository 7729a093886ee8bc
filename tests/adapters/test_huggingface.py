"""Models of transformers, built from their configurations with random weights."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import hsta_fast
from tests.adapters.checks import Inputs, call, check_same, named_rows

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).parent.parent.parent

SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
ATTENTION = "space_time_attention (sdpa with a mask)"
PATCHES = "tubelet_embed: a product of patches"
ABSORBED = "few_query_attention"

Case = tuple[Callable[..., nn.Module], Inputs, dict[str, str], dict[str, int]]


def video(frames: int = 4) -> Tensor:
    return torch.randn(2, frames, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def image(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def attentions(pattern: str, number: int = 2) -> dict[str, str]:
    return {pattern.format(i): ATTENTION for i in range(number)}


def videomae(**more: Any) -> nn.Module:
    return transformers.VideoMAEModel(transformers.VideoMAEConfig(**SMALL, num_frames=4, **more))


def videomae_classifier(**more: Any) -> nn.Module:
    config = transformers.VideoMAEConfig(**SMALL, num_frames=4, num_labels=3, **more)
    return transformers.VideoMAEForVideoClassification(config)


def videomae_pretraining() -> nn.Module:
    decoder = {
        "decoder_hidden_size": 12,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
        "norm_pix_loss": False,
    }
    return transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**SMALL, num_frames=4, **decoder))


def vivit() -> nn.Module:
    small = {k: v for k, v in SMALL.items() if k != "patch_size"}
    return transformers.VivitModel(transformers.VivitConfig(**small, num_frames=4, tubelet_size=[2, 8, 8]))


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**SMALL))


def dinov2() -> nn.Module:
    return transformers.Dinov2Model(transformers.Dinov2Config(**SMALL))


def dinov3() -> nn.Module:
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=2))


def siglip() -> nn.Module:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL))


def vjepa2() -> nn.Module:
    sizes = {k: v for k, v in SMALL.items() if k not in ("image_size", "intermediate_size")}
    predictor = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    config = transformers.VJEPA2Config(
        **sizes, **predictor, crop_size=32, frames_per_clip=8, num_pooler_layers=1, num_labels=3
    )
    return transformers.VJEPA2ForVideoClassification(config)


MASKED = torch.arange(32).view(1, 32).expand(2, 32) % 2 == 0
CASES: dict[str, Case] = {
    "VideoMAE": (
        videomae,
        {"pixel_values": video()},
        {"embeddings.patch_embeddings.projection": PATCHES}
        | attentions("encoder.layer.{}.attention.attention"),
        {"tubelet_embed": 1, "space_time_attention": 2},
    ),
    "VideoMAE, pretraining": (
        videomae_pretraining,
        {"pixel_values": video(), "bool_masked_pos": MASKED},
        {"videomae.embeddings.patch_embeddings.projection": PATCHES}
        | attentions("videomae.encoder.layer.{}.attention.attention")
        | attentions("decoder.decoder_layers.{}.attention.attention", 1),
        {"tubelet_embed": 1, "space_time_attention": 3},
    ),
    "ViViT": (
        vivit,
        {"pixel_values": video()},
        {"embeddings.patch_embeddings.projection": PATCHES} | attentions("layers.{}.attention"),
        {"tubelet_embed": 1, "space_time_attention": 2},
    ),
    "ViT": (vit, {"pixel_values": image()}, attentions("layers.{}.attention"), {"space_time_attention": 2}),
    "DINOv2": (
        dinov2,
        {"pixel_values": image()},
        attentions("encoder.layer.{}.attention"),
        {"space_time_attention": 2},
    ),
    "DINOv3": (
        dinov3,
        {"pixel_values": image()},
        attentions("model.layer.{}.attention"),
        {"space_time_attention": 2},
    ),
    "SigLIP": (
        siglip,
        {"pixel_values": image()},
        attentions("encoder.layers.{}.self_attn") | {"head": ABSORBED},
        {"space_time_attention": 2, "few_query_attention": 1},
    ),
    "V-JEPA 2": (
        vjepa2,
        {"pixel_values_videos": video(8)},
        {"vjepa2.encoder.embeddings.patch_embeddings.proj": PATCHES}
        | attentions("vjepa2.encoder.layer.{}.attention")
        | attentions("vjepa2.predictor.layer.{}.attention", 1)
        | {"pooler.cross_attention_layer.cross_attn": ABSORBED}
        | attentions("pooler.self_attention_layers.{}.self_attn", 1),
        {"tubelet_embed": 1, "space_time_attention": 3, "few_query_attention": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_before_and_after(name: str) -> None:
    build, inputs, rows, calls = CASES[name]
    compiled = "aot_eager" if name in ("VideoMAE", "SigLIP") else None
    check_same(build, inputs, rows=rows, calls=calls, compile_backend=compiled)


def small_videomae(**more: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    return videomae(**more).eval(), {"pixel_values": video()}


def test_by_name_as_transformers_does() -> None:
    """`attn_implementation="hsta_fast"`, at construction and later, once the adapter is imported."""
    import hsta_fast.adapters.huggingface

    model, inputs = small_videomae()
    expected = call(model, inputs)[0]
    cast(Any, model).set_attn_implementation("hsta_fast")
    torch.testing.assert_close(call(model, inputs)[0], expected)
    named, _ = small_videomae(attn_implementation="hsta_fast")
    assert cast(Any, named).config._attn_implementation == "hsta_fast"
    torch.testing.assert_close(call(named, inputs)[0], expected)
    rows = named_rows(hsta_fast.accelerate(named))
    assert set(rows.values()) == {PATCHES, 'left: attn_implementation is "hsta_fast" already'}


def test_saved_models_do_not_mention_it(tmp_path: Path) -> None:
    """A folder that an accelerated model saves is read where hsta_fast is not installed."""
    model, inputs = small_videomae()
    expected = call(model, inputs)[0]
    hsta_fast.accelerate(model)
    cast(Any, model).save_pretrained(tmp_path)
    assert "hsta_fast" not in (tmp_path / "config.json").read_text()
    again = transformers.VideoMAEModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(call(again, inputs)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_another_implementation_is_left(implementation: str) -> None:
    """With "eager" the attention weights may be asked for; the others were chosen for a reason."""
    model, inputs = small_videomae()
    cast(Any, model).set_attn_implementation(implementation)
    report = hsta_fast.accelerate(model)
    left = {row.name: row.why for row in report.rows if row.became is None}
    assert len(left) == 2 and all(implementation in why for why in left.values())
    if implementation == "eager":
        weights = cast(Any, model)(**inputs, output_attentions=True).attentions
        assert [x.shape for x in weights] == [(2, 3, 32, 32)] * 2
    report.revert()
    assert cast(Any, model).config._attn_implementation == implementation


def test_the_implementation_can_be_changed_afterwards() -> None:
    """The modules share one configuration as before, so transformers' own switch still reaches them."""
    model, inputs = small_videomae()
    expected = call(model, inputs)[0]
    report = hsta_fast.accelerate(model)
    cast(Any, model).set_attn_implementation("eager")
    assert len(cast(Any, model)(**inputs, output_attentions=True).attentions) == 2
    torch.testing.assert_close(call(model, inputs)[0], expected)
    report.revert()
    assert cast(Any, model).config._attn_implementation == "eager", "what was set meanwhile stays"


def test_a_model_that_shares_the_configuration_stays_as_it_is() -> None:
    config = transformers.VideoMAEConfig(**SMALL, num_frames=4)
    one, other = transformers.VideoMAEModel(config), transformers.VideoMAEModel(config)
    report = hsta_fast.accelerate(one)
    assert one.config is other.config is config and config._attn_implementation == "sdpa"
    assert one.encoder.layer[0].attention.attention.config._attn_implementation == "hsta_fast"
    assert other.encoder.layer[0].attention.attention.config is config
    report.revert()
    assert one.encoder.layer[0].attention.attention.config is config


def test_attention_dropout_in_training() -> None:
    """Dropout of the attention weights runs in transformers' own attention, with the same random numbers."""
    model, inputs = small_videomae(attention_probs_dropout_prob=0.5)
    before = [call(model.train(mode), inputs)[0] for mode in (True, False)]
    report = hsta_fast.accelerate(model)
    whys = {row.why for row in report.rows if row.kind == "VideoMAESelfAttention"}
    assert whys == {"sdpa in training: attention dropout 0.5"}
    after = [call(model.train(mode), inputs)[0] for mode in (True, False)]
    torch.testing.assert_close(after, before)
    assert not torch.allclose(before[0], before[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_mask": torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()},
        {"is_causal": True},
        {"is_causal": None},
        {"dropout": 0.3},
        {"position_bias": torch.randn(1, 2, 9, 9)},
    ],
    ids=["mask", "causal", "causal module", "dropout", "score bias"],
)
def test_what_the_kernels_cannot_do_goes_to_sdpa(changes: dict[str, Any]) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from hsta_fast.adapters.huggingface import attention

    module = nn.Module()
    cast(Any, module).is_causal = changes.get("is_causal", False) is None
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    given = {"attention_mask": None, "is_causal": False, **changes}
    results = []
    for function in (attention, sdpa_attention_forward):
        torch.manual_seed(0)
        results.append(function(module, q, k, v, **given)[0])
    assert torch.equal(*results)
    plain = attention(module, q, k, v, None, is_causal=False)[0]
    assert not torch.allclose(results[0], plain), "the change has an effect"


def test_grouped_queries_go_to_sdpa() -> None:
    from hsta_fast.adapters.huggingface import attention

    module = nn.Module()
    cast(Any, module).num_key_value_groups = 2
    q, k, v = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    out, _ = attention(module, q, k, v, None, is_causal=False)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(out.transpose(1, 2), expected)


def test_text_with_padding_is_masked_as_before() -> None:
    """SigLIP's text model in the same model: its padded batches run in sdpa with their mask."""
    text = {"vocab_size": 20, "max_position_embeddings": 8, "pad_token_id": 1}
    sizes = {k: v for k, v in SMALL.items() if k not in ("image_size", "patch_size")}
    config = transformers.SiglipConfig(text_config={**sizes, **text}, vision_config=SMALL)
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5])
    inputs = {"input_ids": torch.randint(2, 20, (2, 8)), "attention_mask": mask, "pixel_values": image()}
    expected = model(**inputs)
    report = hsta_fast.accelerate(model)
    assert len(report.switched) == 5
    came = model(**inputs)
    torch.testing.assert_close(came.logits_per_image, expected.logits_per_image)
    masked = model(**(inputs | {"attention_mask": torch.ones_like(mask)}))
    assert not torch.allclose(masked.logits_per_image, expected.logits_per_image), "the mask has an effect"


def test_a_subclass_with_its_own_forward_is_left() -> None:
    from transformers.models.videomae.modeling_videomae import VideoMAESelfAttention

    class Halved(VideoMAESelfAttention):
        def forward(self, hidden_states: Tensor | None = None) -> tuple[Tensor, Tensor]:
            out, weights = super().forward(hidden_states)
            return out / 2, weights

    model, inputs = small_videomae()
    attention = cast(Any, model).encoder.layer[0].attention
    attention.attention.__class__ = Halved
    expected = call(model, inputs)[0]
    report = hsta_fast.accelerate(model)
    rows = named_rows(report)
    assert rows["encoder.layer.0.attention.attention"] == "left: a subclass of VideoMAESelfAttention"
    assert rows["encoder.layer.1.attention.attention"] == ATTENTION
    assert attention.attention.config._attn_implementation == "sdpa"
    torch.testing.assert_close(call(model, inputs)[0], expected)


def test_a_model_type_that_was_not_checked_is_left() -> None:
    config = transformers.BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, vocab_size=20
    )
    model = transformers.BertModel(config)
    report = hsta_fast.accelerate(model)
    assert not report.switched and {row.why for row in report.rows} == {"not known"}
    assert model.config is config


@pytest.mark.parametrize("when", ["before", "after"])
def test_adapters_of_peft(when: str) -> None:
    """LoRA on the projections that a switched module bypasses: they are called."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = siglip().eval()
    inputs = {"pixel_values": image()}

    def adapted(model: nn.Module) -> nn.Module:
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
        torch.manual_seed(1)
        return peft.get_peft_model(model, config).eval()

    expected = call(adapted(copy.deepcopy(model)), inputs)
    if when == "before":
        model = adapted(model)
        hsta_fast.accelerate(model)
    else:
        hsta_fast.accelerate(model)
        model = adapted(model)
    for x, y in zip(call(model, inputs), expected, strict=True):
        torch.testing.assert_close(x, y)


def test_what_is_set_meanwhile_stays() -> None:
    model, _ = small_videomae()
    config = cast(Any, model).config
    report = hsta_fast.accelerate(model)
    config.id2label = {0: "a"}
    assert cast(Any, model).encoder.layer[0].attention.attention.config.id2label == {0: "a"}
    report.revert()
    assert cast(Any, model).config is config and config.id2label == {0: "a"}


def test_an_attention_that_asks_for_its_own_implementation_is_not_touched() -> None:
    class Own(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config

        def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
            return {"sdpa": hidden_states, "eager": 2 * hidden_states}[self.config._attn_implementation], None

    model, inputs = small_videomae()
    cast(Any, model).encoder.layer[1].attention.attention = Own(cast(Any, model).config)
    expected = call(model, inputs)[0]
    hsta_fast.accelerate(model)
    torch.testing.assert_close(call(model, inputs)[0], expected)


def test_a_pickled_model_is_read_by_another_process(tmp_path: Path) -> None:
    model, inputs = small_videomae()
    hsta_fast.accelerate(model)
    torch.save({"model": model, "inputs": inputs, "expected": call(model, inputs)[0]}, tmp_path / "model.pt")
    code = (
        "import sys, torch; found = torch.load(sys.argv[1], weights_only=False)\n"
        "came = found['model'](**found['inputs']).last_hidden_state\n"
        "print(float((came - found['expected']).abs().max()) < 1e-5)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_an_empty_batch() -> None:
    head = cast(nn.Module, siglip().head)
    empty = [torch.empty(0, 65, 24)]
    expected = call(head, empty)
    hsta_fast.accelerate(head)
    assert [x.shape for x in call(head, empty)] == [x.shape for x in expected]
