#!/usr/bin/env bash
# Writes the nested lab's report page: what was checked, with logs and screenshots beside it.
#
#   report.sh FOLDER >report.html
set -euo pipefail
cd "$1"
escaped() { tr -d '\000-\010\013-\037' | sed 's/&/\&amp;/g; s/</\&lt;/g'; }
echo '<!doctype html><meta charset="utf-8"><title>Desktops on splice-vmm</title>'
echo '<style>body{font:15px sans-serif;max-width:60em;margin:2em auto}pre{background:#f4f4f4;padding:1em;max-height:30em;overflow:auto}td{padding:.2em 1em}.FAILED{color:#b00}</style>'
echo '<h1>Desktops on splice-vmm, in nested KVM</h1><table>'
{ grep -aE '^CHECK ' l1.serial || true; } | tr -d '\r' | while read -r _ name status rest; do
    printf '<tr><td>%s</td><td class="%s">%s</td><td>%s</td></tr>\n' "$name" "$status" "$status" "$(printf %s "$rest" | escaped)"
done
echo '</table><ul>'
{ grep -aE '^NOTE ' l1.serial || true; } | tr -d '\r' | cut -d' ' -f2- | escaped | sed 's/.*/<li>&<\/li>/'
echo '</ul>'
for figures in *.json; do
    [ -f "$figures" ] || continue
    printf '<h2>%s</h2><pre>' "$figures"
    escaped <"$figures"
    echo '</pre>'
done
for shot in *.png; do
    [ ! -f "$shot" ] || printf '<h2>%s</h2><img src="%s" style="max-width:100%%">\n' "$shot" "$shot"
done
for log in *.serial *.vmm; do
    [ -f "$log" ] || continue
    printf '<details><summary>%s</summary><pre>' "$log"
    escaped <"$log"
    echo '</pre></details>'
done
