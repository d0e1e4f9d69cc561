#!/usr/bin/env bash
# Everything that only a GPU can show, unattended, in at most 40 minutes: benchmarks/gpu.sh [--tiny] [--out RESULTS.json]
exec "${PYTHON:-python}" "$(dirname "$0")/gpu.py" "$@"
