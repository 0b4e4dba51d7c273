# bash completion for qosctl. Static: asking the program at each TAB would start Python each time.
_qosctl() {
    local current=${COMP_WORDS[COMP_CWORD]} command= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            -*) ;;
            *) command=${COMP_WORDS[i]}; break ;;
        esac
    done
    case $command in
        '')
            mapfile -t COMPREPLY < <(compgen -W 'check doctor explain pause reload restore resume run status --help --version' -- "$current")
            return ;;
        run)
            # qosctl run TIER -- COMMAND...: from the command on it is that command's own completion.
            if ((COMP_CWORD == i + 1)); then
                mapfile -t COMPREPLY < <(compgen -W 'ls be --help' -- "$current")
            elif ((COMP_CWORD == i + 2)); then
                COMPREPLY=(--)
            elif declare -F _command_offset >/dev/null; then
                _command_offset $((i + 3))
            fi
            return ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '--json --help' -- "$current")
        return
    fi
    case $command in
        check) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        explain)
            # Cgroups as qosd names them: relative to the cgroup2 mount.
            compopt -o nospace
            mapfile -t COMPREPLY < <(cd /sys/fs/cgroup 2>/dev/null && compgen -d -S / -- "$current") ;;
        pause) mapfile -t COMPREPLY < <(compgen -W '10min 1h' -- "$current") ;;
    esac
}
complete -F _qosctl qosctl
