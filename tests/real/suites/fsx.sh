#!/usr/bin/env bash
# fsx: four kinds of files, the random sequences of six seeds on each, commits beside it
# runs as: root user
# tools: fsx
KARAPACE_FSX_SEEDS=${KARAPACE_FSX_SEEDS:-$RANDOM $RANDOM $RANDOM $RANDOM $RANDOM $RANDOM}
# shellcheck source=tests/e2e/suites/fsx.sh
. "$(dirname "$0")/../../e2e/suites/fsx.sh"
