# bash completion for qosctl. Static: asking the program at each TAB would start Python each time.
_qosctl() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command= i
    local -A options=(
        [check]='--json' [decisions]='--since --path --json' [doctor]='--config --json'
        [explain]='--file --verdict --json' [pause]='--json'
        [reload]='--json' [restore]='--json' [resume]='--json' [record]='--for --json' [replay]='--config --against --json' [run]='--user' [simulate]='--config --for --static --json' [status]='--watch --json' [feed]='--unit --json' [policy]='--json' [top]='--ticks --json' [verdicts]='--since --json' [victims]='--json'
    )
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --socket) ((i++)) ;;
            -*) ;;
            *) command=${COMP_WORDS[i]}; break ;;
        esac
    done
    case $previous in
        --socket | --config | --against) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        --user) mapfile -t COMPREPLY < <(compgen -u -- "$current"); return ;;
        --file) mapfile -t COMPREPLY < <(compgen -W 'cgroup.freeze cpu.max cpu.max.burst cpu.weight cpu.idle cpuset.cpus io.weight io.max io.latency' -- "$current"); return ;;
        --unit) mapfile -t COMPREPLY < <(compgen -W 'us ms s' -- "$current"); return ;;
        --since | --for) mapfile -t COMPREPLY < <(compgen -W '90s 10m 1h' -- "$current"); return ;;
        --path) _qosctl_cgroups; return ;;
    esac
    case $command in
        '')
            mapfile -t COMPREPLY < <(compgen -W "${!options[*]} --socket --version --help" -- "$current")
            return ;;
        run)
            # From the command on it is that command's own completion.
            for ((i++; i < COMP_CWORD; i++)); do
                if [[ ${COMP_WORDS[i]} == -- ]]; then
                    ! declare -F _command_offset >/dev/null || _command_offset $((i + 1))
                    return
                fi
            done
            mapfile -t COMPREPLY < <(compgen -W 'ls be -- --user --help' -- "$current")
            return ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${options[$command]} --help" -- "$current")
        return
    fi
    case $command in
        check | record | replay) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        policy)
            if [[ $previous == policy ]]; then
                mapfile -t COMPREPLY < <(compgen -W 'load unload list' -- "$current")
            else
                compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current")
            fi ;;
        explain) _qosctl_cgroups ;;
        simulate) mapfile -t COMPREPLY < <(compgen -W 'steady steady-60 coarse square step bursty spike day busy-day' -- "$current") ;;
        pause) mapfile -t COMPREPLY < <(compgen -W '10m 1h' -- "$current") ;;
    esac
}
# Cgroups as qosd names them: relative to the cgroup2 mount.
_qosctl_cgroups() {
    compopt -o nospace
    mapfile -t COMPREPLY < <(cd /sys/fs/cgroup 2>/dev/null && compgen -d -S / -- "$current")
}
complete -F _qosctl qosctl
