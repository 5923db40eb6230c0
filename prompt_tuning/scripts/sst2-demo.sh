#!/usr/bin/env bash
# Trains a prompt for SST-2 on T5 1.1, adapted to language modelling: 50,000
# steps of 128 sentences on base.
#
#   sst2-demo.sh MODEL_DIR TFDS_DATA_DIR [--gin.NAME=VALUE ...]
#
# The variables below may be set in the environment instead; what is written
# behind the folders has the last word.
set -euo pipefail

MODEL_DIR="${1:-${MODEL_DIR:-}}"
TFDS_DATA_DIR="${2:-${TFDS_DATA_DIR:-}}"
# small, base, large, xl or xxl.
SIZE="${SIZE:-base}"
PRETRAINED_MODEL="${PRETRAINED_MODEL:-t5_1_1_lm100k_${SIZE}/checkpoint_1100000}"
VOCABULARY_FILE="${VOCABULARY_FILE:-sentencepiece.model}"
# Those of the base are counted, too; with a Hugging Face directory, which says
# none, 50_000.
TRAIN_STEPS="${TRAIN_STEPS:-1_150_000}"
PYTHON="${PYTHON:-python3}"

if [[ -z "${MODEL_DIR}" || -z "${TFDS_DATA_DIR}" ]]; then
  echo "usage: ${DEMO:-sst2-demo.sh} MODEL_DIR TFDS_DATA_DIR" \
    "[--gin.NAME=VALUE ...]" >&2
  exit 2
fi
if [[ ! -d "${PRETRAINED_MODEL}" ]]; then
  echo "error: There is no ${PRETRAINED_MODEL}: copy it from" \
    "gs://t5-data/pretrained_models/t5x/t5_1_1_lm100k_${SIZE} and set" \
    "PRETRAINED_MODEL." >&2
  exit 2
fi
if [[ ! -f "${VOCABULARY_FILE}" ]]; then
  echo "error: There is no ${VOCABULARY_FILE}: copy it from" \
    "gs://t5-data/vocabs/cc_all.32000.100extra and set VOCABULARY_FILE." >&2
  exit 2
fi

exec "${PYTHON}" -m prompt_tuning.train \
  --gin_file="prompt_tuning/configs/models/t5_1_1_${SIZE}_prompt.gin" \
  --gin_file="prompt_tuning/configs/prompts/from_class_labels.gin" \
  --gin_file="prompt_tuning/configs/runs/prompt_finetune.gin" \
  --gin.CLASS_LABELS="['positive', 'negative']" \
  --gin.MODEL_DIR="'${MODEL_DIR}'" \
  --gin.MIXTURE_OR_TASK_NAME="'taskless_glue_sst2_v200_examples'" \
  --gin.TASK_FEATURE_LENGTHS="{'inputs': 512, 'targets': 8}" \
  --gin.INITIAL_CHECKPOINT_PATH="'${PRETRAINED_MODEL}'" \
  --gin.VOCABULARY_FILE="'${VOCABULARY_FILE}'" \
  --gin.TRAIN_STEPS="${TRAIN_STEPS}" \
  --gin.USE_CACHED_TASKS="False" \
  --tfds_data_dir="${TFDS_DATA_DIR}" \
  "${@:3}"
