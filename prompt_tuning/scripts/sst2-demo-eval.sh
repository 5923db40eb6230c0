#!/usr/bin/env bash
# Evaluates a prompt for SST-2 on T5 1.1 base, adapted to language modelling.
# The one that the original's authors released has an accuracy of 95.07 %.
#
#   sst2-demo-eval.sh EVAL_DIR TFDS_DATA_DIR [--gin.NAME=VALUE ...]
#
# The variables below may be set in the environment instead.
set -euo pipefail

EVAL_DIR="${1:-${EVAL_DIR:-}}"
TFDS_DATA_DIR="${2:-${TFDS_DATA_DIR:-}}"
# The released one is t5_1_1_lm100k_base/sst2.npy in the original's repository;
# sst2-demo.sh leaves its own as prompt.npy in its MODEL_DIR.
PROMPT_FILE="${PROMPT_FILE:-t5_1_1_lm100k_base/sst2.npy}"
PRETRAINED_MODEL="${PRETRAINED_MODEL:-t5_1_1_lm100k_base/checkpoint_1100000}"
VOCABULARY_FILE="${VOCABULARY_FILE:-sentencepiece.model}"
PYTHON="${PYTHON:-python3}"

if [[ -z "${EVAL_DIR}" || -z "${TFDS_DATA_DIR}" ]]; then
  echo "usage: sst2-demo-eval.sh EVAL_DIR TFDS_DATA_DIR" \
    "[--gin.NAME=VALUE ...]" >&2
  exit 2
fi
if [[ ! -d "${PRETRAINED_MODEL}" ]]; then
  echo "error: There is no ${PRETRAINED_MODEL}: copy it from" \
    "gs://t5-data/pretrained_models/t5x/t5_1_1_lm100k_base and set" \
    "PRETRAINED_MODEL." >&2
  exit 2
fi
if [[ ! -f "${VOCABULARY_FILE}" ]]; then
  echo "error: There is no ${VOCABULARY_FILE}: copy it from" \
    "gs://t5-data/vocabs/cc_all.32000.100extra and set VOCABULARY_FILE." >&2
  exit 2
fi
if [[ ! -f "${PROMPT_FILE}" ]]; then
  echo "error: There is no ${PROMPT_FILE}: set PROMPT_FILE to a prompt for" \
    "this model." >&2
  exit 2
fi

exec "${PYTHON}" -m prompt_tuning.eval \
  --gin_file="prompt_tuning/configs/models/t5_1_1_base_prompt.gin" \
  --gin_file="prompt_tuning/configs/runs/prompt_eval.gin" \
  --gin.MIXTURE_OR_TASK_NAME="'taskless_glue_sst2_v200_examples'" \
  --gin.TASK_FEATURE_LENGTHS="{'inputs': 512, 'targets': 8}" \
  --gin.CHECKPOINT_PATH="'${PRETRAINED_MODEL}'" \
  --gin.VOCABULARY_FILE="'${VOCABULARY_FILE}'" \
  --gin.EVAL_OUTPUT_DIR="'${EVAL_DIR}'" \
  --gin.EVAL_SPLIT="'validation'" \
  --gin.BATCH_SIZE="128" \
  --gin.USE_CACHED_TASKS="False" \
  --gin.PROMPT_FILE="'${PROMPT_FILE}'" \
  --tfds_data_dir="${TFDS_DATA_DIR}" \
  "${@:3}"
