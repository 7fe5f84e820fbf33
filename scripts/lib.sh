# Sourced by the other scripts: where the checkout is, its Python, and stages that are counted.
# shellcheck shell=bash disable=SC2034

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
failed=()
cd "$root" || exit

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# stage NAME COMMAND… runs the command, and remembers the name if it fails.
stage() {
    local name="$1"
    shift
    printf '\n== %s\n' "$name"
    "$@" || failed+=("$name")
}

# The end of a script with stages: fails, naming them, if any did.
report() {
    if ((${#failed[@]})); then
        printf '\nFAILED: %s\n' "$(IFS=,; echo "${failed[*]}")" >&2
        exit 1
    fi
}
