"""SMDM's fine-tuning on GSM8K (arXiv 2410.18514): a masked checkpoint learns thoughts, and the numbers behind them.

Make the records with python -m launch.tasks --task=gsm8k_twice --data=train.jsonl --records=gsm8k_records.jsonl (two a
problem: question to thought, and both to the number), and give the checkpoint with --config.train.init_from. Prompts
stay clean; end tokens fill the rows and are learnt. The paper's augmented problems make 769,240 records; the steps are
40 passes over those. Ask it with

python -m launch.tasks --checkpoint=DIR --task=gsm8k_twice --data=test.jsonl --output=results \\
    --decoder=low_confidence --steps=256 --new_tokens=192 --max_length=640 --temperature=0.1 --guidance=0.1

The paper decodes 256 steps over 256 positions, question included. Here all questions have the same new tokens: 192,
which with a usual question (66 of Llama 2's tokens) are about the paper's 256. The longest of the test set takes 193,
and 578 with both answers, which is why --max_length is more than the rows have; positions behind 256 were not trained.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.process.eps = 1e-3
    config.data.source = "gsm8k_records.jsonl"
    config.data.prompt_field = "prompt"
    config.data.text_field = "completion"
    config.data.length = 256
    config.data.valid_fraction = 0.01
    config.train.init_from = "runs/smdm"  # the masked checkpoint
    config.train.steps = 120_194  # 40 * 769_240 / 256
    config.train.batch_size = 256
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 1202
    config.train.b2 = 0.95
    config.train.weight_decay = 0.1
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 2000
    config.eval.every = 2000
    return config
