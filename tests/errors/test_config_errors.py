"""Every refusal of the configuration: cases name the field at fault first, and together they meet every one."""

from launch import _cli
from mdlm_jax.config import RunConfig, freeze, recipe
from mdlm_jax.config.model import ModelConfig
from mdlm_jax.config.objectives import check_columns, rows_per_device
from mdlm_jax.models.config import TransformerConfig
from tests.errors.form import faults
from tests.errors.report import sites_of
from tests.errors.sites import sites

MASKED = "process.mixing=0.5"
MOE = "model.moe_experts=4 model.moe_per_token=2 model.moe_d_ff=8"
BIAS = f"{MOE} model.moe_selection_bias=true"
BLOCKS = "train.objective=block model.attention=block_causal model.block_length=4"
JOINT = "train.objective=joint:3 train.init_from=x data.source=trajectories:x"
PAIRS = "data.source=x.jsonl data.prompt_field=prompt"
TIME = "model.conditioning=time"
UNIFORM = "process.mixing=1"
MARIA = "data.source=digits train.objective=maria train.init_from=x train.twin=x"

FIELDS = f"""
data.source= | data.length=1 | data.valid_fraction=0 | data.packing=tight | data.length=2 data.packing=wrapped
data.tokenizer=bpe:9 | data.text_field=body | data.packing=wrapped {PAIRS} | data.detokenizer=lm1b {PAIRS}
data.random_length=0.5 {PAIRS} | data.prompt_loss=true | data.chat_template=llada | data.answer_multiple=999 {PAIRS}
data.data_dir=x | data.random_length=2 | data.valid_fraction=0.5 data.source=prepared:x | data.prompt_field=prompt
data.prompt_field=text {PAIRS.partition(" ")[0]} | data.valid_last=-1 | data.valid_fraction=0.5 data.valid_last=10
data.prompt_field=prompt data.messages_field=turns data.source=x.jsonl | data.codes=-1 | data.codes=5
data.source=codes: | data.length=32 data.source=digits | data.packing=wrapped data.source=codes:x
data.length_warmup=1 | data.source=prepared: | data.source=mixture:0*x | data.source=mixture:1*x,1*x
data.detokenizer=none:x | data.seed=-1
eval.every=0 | sample.num=0 | sample.steps=0 | sample.temperature=-1 | sample.top_p=0 | sample.top_k=-1
sample.guidance=-1 | sample.guidance=1 | log.project=  log.wandb=true | log.project=mine
train.mesh=rows:2 | train.mesh=fsdp:0 | train.mesh=fsdp:-1,tensor:-1
model.heads=3 | model.dtype=float64 | model.moe_per_token=2 | model.attention=causal {JOINT}
model.conditioning=time {JOINT} | model.attention=causal train.objective=sdtt:2 train.init_from=x
data.source=trajectories:x
process.mixing=0.5 {BLOCKS} | train.block_schedule=1:2,4 | model.logit_shift=false train.objective=autoregressive
 model.attention=causal | {TIME} {BLOCKS}
model.moe_block=2 {MOE} model.moe_block_pool=3 train.objective=any_order model.attention=permutation
train.weighting=dynamic | train.weighting=constant process.family=gidd | model.attention=causal {BLOCKS.split()[0]}
model.attention=permutation | train.block_schedule=1:2,2 {BLOCKS} | train.block_schedule=1:9,4 train.steps=5
 train.warmup_steps=1 {BLOCKS}
model.block_length=7 {BLOCKS.rpartition(" ")[0]} | model.moe_block=3 {MOE} model.moe_block_pool=3 {BLOCKS}
model.block_length=1 train.objective=levenshtein:1,2 model.attention=block_causal
model.classes=10 {TIME} | train.class_dropout=0.5 | train.per_answer=true
train.per_answer=true train.objective=genmd4:1 {PAIRS} | train.confidence=1 {MASKED}
train.each_twice=true train.complementary=true | train.router_bias_rate=0.1
train.router_bias_rate=0.1 {BIAS} train.objective=genmd4:1 | eval.draws=3 train.objective=autoregressive
 model.attention=causal model.logit_shift=true
process.family=odd | process.mixing=0.5 process.family=gidd | process.p_uniform=1 process.family=gidd
process.gamma=3 process.family=gidd | process.mixing=2 | process.eps=0.5 | process.schedule=polynomial:0
process.schedule=geometric:9,1 | process.eps=0.1 process.schedule=geometric:0.1,9
train.keep_best=1 eval.every=3 | train.objective=count {MASKED}
process.schedule=geometric:0.1,9 train.objective=discrete:9 | process.schedule=cosine train.objective=genmd4:1
train.objective=genmd4:1 {MOE} model.moe_z_loss=1 | train.weighting=constant train.objective=discrete:9
train.complementary=true {MASKED} | train.complementary=true train.time_sampling=iid
train.steps=0 | train.keep_every=-1 | train.keep_every=3 | train.microbatches=3 | train.seed=-1
train.objective=discrete:0 | train.objective=genmd4:0 | train.objective=joint:65 | train.objective=prism:0
train.objective=joint:3 | train.lora_rank=4 {JOINT} | train.objective=sdtt:2 | train.objective=sdtt:3 train.init_from=x
train.objective=draft_edit:2,1,1 | train.objective=draft_edit:0.5,1,0 | train.objective=levenshtein:1,0
train.class_dropout=1 | train.any_order=2 | train.any_order=0.5 | train.confidence=-1 | train.router_bias_rate=1
train.level_law=fixed:2 | train.level_law=band:0.5,0.2 | train.level_law=fixed:1 | train.weighting=power:9
train.weighting=clipped:0 | train.weighting=elbo train.level_law=fixed:0.5 | train.learning_rate=0
train.warmup_steps=-1 | train.lr_schedule=wsd:2 | train.b1=1 | train.adam_eps=0
train.adam_eps=0.1 train.optimizer=lion | train.weight_decay=-1 | train.clip_norm=0
train.router_bias_rate=0.1 {BIAS} train.freeze=* | train.lora_rank=-1 | train.lora_alpha=2
train.lora_alpha=0 train.lora_rank=4 train.init_from=x | train.lora_targets=, train.lora_rank=4 train.init_from=x
train.lora_rank=4 | train.optimizer=muon train.lora_rank=4 train.init_from=x
train.router_bias_rate=0.1 {BIAS} train.lora_rank=4 train.init_from=x | train.block_schedule=x
train.weighting=power | train.weighting=power:x | train.weighting=power:nan | train.weighting=odd
model.rope_theta=-1 | model.rope_fraction=2 | model.rope_scaling=odd | model.rope_factor=0.5
model.rope_original_length=0 model.rope_scaling=yarn
model.rope_low_frequency=9 model.rope_scaling=llama3 model.rope_original_length=9
model.moe_groups=0 {MOE} | model.moe_block=-1 {MOE} | model.moe_bias_in_weight=true {MOE} | model.moe_groups=3 {MOE}
model.moe_top_groups=2 {MOE} | model.moe_groups=4 {MOE} | model.moe_per_token=9 {MOE} | model.moe_block_pool=3 {MOE}
model.moe_groups=2 {MOE} model.moe_block=2 model.moe_block_pool=3 | model.moe_block_pool=1 {MOE} model.moe_block=2
model.layers=0 | model.head_dim=-1 | model.classes=3 | model.kv_heads=3 | model.dropout=1
model.time_features=3 {TIME} | model.tied=true model.head_size=9 model.vocab_size=5 | model.norm_bias=true
model.block_length=2 | model.rope_fraction=0.05 | model.moe_leading_dense=99 {MOE}
model.activation=gelu {MOE} | model.latent=3 | model.latent=-2
process.mixing=0.5 train.objective=duo:2 train.init_from=x | model.classes=10 {TIME} {MARIA} data.length=64
data.source=text.txt train.objective=joint:3 train.init_from=x
train.lora_rank=4 train.objective=di4c:8,4,0.1,1 train.init_from=x model.latent=4
train.divergence=forward_kl | train.divergence=odd | train.twin=x | train.twin= train.objective=maria train.init_from=x
train.objective=codd:1 train.init_from=x | train.objective=any_subset:0.5,0.1 model.attention=permutation
train.objective=duo:1 train.init_from=x {UNIFORM} | train.objective=di4c:8,0,0.1,1 train.init_from=x
train.objective=di4c:8,4,2,1 train.init_from=x | train.objective=di4c:8,4,0.1,-1 train.init_from=x
train.objective=dparallel:0,2,0.5 train.init_from=x | train.objective=dparallel:8,-1,0.5 train.init_from=x
train.objective=dmax:0,0,1 train.init_from=x
"""

PYTHON = {
    "model.vocab_size=9": lambda: ModelConfig(vocab_size=9).transformer(10),
    "data=3": lambda: freeze({"data": 3}),
    "train.steps=1.5": lambda: freeze({"train": {"steps": 1.5}}),
    "train.clip_norm=inf": lambda: freeze({"train": {"clip_norm": float("inf")}}),
    "train.step": lambda: freeze({"train": {"step": 1}}),
    "recipe='odd'": lambda: recipe("odd"),
    "train.batch_size=32": lambda: rows_per_device(RunConfig().train, 3),
    "model.head_size=10": lambda: check_columns("levenshtein:1,2", 9, 10),
    "d_model=6": lambda: TransformerConfig(vocab_size=9, head_size=9, layers=1, d_model=6, heads=4, kv_heads=4, d_ff=8),
    "dtype='float64'": lambda: TransformerConfig(9, 9, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=8,
                                                 dtype="float64"),
}


def _given(line: str) -> RunConfig:
    fields = [part for part in line.split(" ") if part]
    nested: dict = {}
    for name, value in _cli.parse([f"--config.{field}" for field in fields[::-1]], (), config=True).overrides.items():
        section, field = name.split(".")
        nested.setdefault(section, {})[field] = value
    return freeze(nested)


def _cases():
    for line in FIELDS.replace("\n ", " ").replace("\n", "|").split("|"):
        if line.strip():
            yield line.split()[0], lambda line=line: _given(line.strip())
    yield from PYTHON.items()


def test_every_refusal_of_the_configuration_names_the_field_and_the_remedy():
    wrong, met = [], set()
    known = [site for site in sites() if site.file.startswith(("mdlm_jax/config/", "mdlm_jax/models/config.py"))]
    for field, make in _cases():
        try:
            make()
        except ValueError as error:
            met |= sites_of(error, known)
            name, _, value = field.partition("=")
            said, asked = str(error), (name, value.strip("'").replace("true", "True").replace("false", "False"))
            problems = faults(said) + [f"does not say {part}" for part in asked if part not in said]
            wrong += [f"{field}: {said} ({problem})" for problem in problems]
        else:
            wrong.append(f"{field}: is taken")
    assert not wrong, "\n".join(wrong)
    left = [site.key for site in known if site not in met]
    assert not left, "\n".join(left)
