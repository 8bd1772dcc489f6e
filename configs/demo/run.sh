#!/usr/bin/env bash
# The whole picture on an embedded corpus, in a few minutes on two CPU cores. Run it as `make demo`.
# Every command is shown before it runs; the same commands, with configs/llama2-7b.toml and real corpora, make the 7B.
set -euo pipefail
cd "$(dirname "$0")/../.."
ranks=${RANKS:-2}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=offline

case $ranks in
    2) layout=() ;;
    4) layout=(--parallel.pipeline 2) ;;
    *) echo "RANKS is $ranks; the demo runs on 2 ranks (tensor 2) or 4 (tensor 2 x pipeline 2)" >&2; exit 2 ;;
esac

say() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
run() { local line="$*"; printf '\033[2m$ %s\033[0m\n' "${line:0:180}$([ ${#line} -le 180 ] || echo ' ...')"; "$@"; }

rm -rf runs/demo
say "1. A tokenizer for the demo (the 7B uses Llama-2's own)"
run python -m data_shards tokenizer --format pmc --input configs/demo/corpus/pmc/*.nxml --vocab-size 2048 --output runs/demo/tokenizer
say "2. Articles in four formats become clean, unique token shards"
run python -m data_shards build configs/demo/build.toml
run python -m data_shards verify runs/demo/shards
say "3. A model to start from (the 7B starts from Llama-2-7B-Chat), as a checkpoint that any layout loads"
run python -m parallel create configs/demo/model.json runs/demo/tokenizer runs/demo/base
run python -m parallel import runs/demo/base runs/demo/checkpoint
say "4. Training over $ranks ranks, through megatron-core"
run torchrun --nproc-per-node "$ranks" -m pretrain configs/demo/pretrain.toml "${layout[@]}"
say "5. Back out as a Hugging Face model"
run python -m parallel export runs/demo/pretrain runs/demo/model
say "6. Did it help? Before and after, measured by transformers on articles that training never saw"
run python -m eval pretraining --base runs/demo/base --continued runs/demo/model --shards runs/demo/shards \
    --sequence-length 256 --out runs/demo/scores/pretraining
say "7. Molecules and proteins with questions (the 10B takes PubChem and Swiss-Prot), and how far copying an answer gets"
run python configs/demo/structures.py runs/demo/structures
run python -m align build questions runs/demo/structures/molecules.jsonl --out runs/demo/molecules
run python -m align build uniprotqa runs/demo/structures/proteins.json --out runs/demo/proteins
run python configs/demo/protein_encoder.py runs/demo/protein-encoder
say "8. A graph network, a protein encoder and the model of step 5 aligned over 2 ranks, through DeepSpeed ZeRO"
run torchrun --nproc-per-node 2 -m align train configs/demo/align.toml
run python -m align export runs/demo/align runs/demo/aligned
say "9. Is the structure used? Answers to held-out questions, scored with their own structures and with others'"
run python -m align controls runs/demo/aligned runs/demo/molecules runs/demo/proteins
say "10. Ask it"
run python -m align ask runs/demo/aligned --molecule 'OC(=O)c1ccc(Cl)cc1' 'Please describe this molecule.'
run python -m align ask runs/demo/aligned --protein MKKLLLALLALLAAPAQAEDKTGHRYERVDSQEPKPEDDLTHEAKS \
    'What are the subcellular locations of this protein?'
say "11. How good are its answers? Beside what copying the nearest training answer scores, with intervals"
run python -m eval runs/demo/aligned --suite structures --data runs/demo/molecules runs/demo/proteins --out runs/demo/scores/structures
printf '\nlanguage model: runs/demo/model   aligned model: runs/demo/aligned\n'
printf 'loss plots: runs/demo/pretrain/loss.png runs/demo/align/loss.png   metrics: metrics.jsonl beside them\n'
printf 'reports: runs/demo/scores/pretraining/perplexity/report.html runs/demo/scores/structures/report.html\n'
