# Sourced by the other scripts: the paths of the checkout and of its Python, and stages.
# shellcheck shell=bash disable=SC2034

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
failed=()
cd "$root" || exit

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# stage NAME COMMAND… runs the command, and records the name if it fails.
stage() {
    local name="$1"
    shift
    printf '\n== %s\n' "$name"
    "$@" || failed+=("$name")
}

# Call at the end of a script with stages: names the failed stages and exits with 1.
report() {
    if ((${#failed[@]})); then
        printf '\nFAILED: %s\n' "$(IFS=,; echo "${failed[*]}")" >&2
        exit 1
    fi
}
