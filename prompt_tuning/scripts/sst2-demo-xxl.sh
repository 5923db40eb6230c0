#!/usr/bin/env bash
# sst2-demo.sh with T5 1.1 XXL: 50,000 steps of 32 sentences, each layer split
# over several devices.
#
#   sst2-demo-xxl.sh MODEL_DIR TFDS_DATA_DIR [--gin.NAME=VALUE ...]
#
# The variables of sst2-demo.sh, and the one below, may be set in the
# environment.
set -euo pipefail

# Over how many devices a layer is split; their number is a multiple of it.
MODEL_PARALLEL="${MODEL_PARALLEL:-8}"

DEMO="sst2-demo-xxl.sh" SIZE="xxl" exec \
  "$(dirname "${BASH_SOURCE[0]}")/sst2-demo.sh" "${1:-}" "${2:-}" \
  --gin.BATCH_SIZE="32" \
  --gin.WEIGHT_DTYPE="'bfloat16'" \
  --gin.sharding.make_mesh.model="${MODEL_PARALLEL}" \
  "${@:3}"
