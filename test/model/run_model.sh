#!/usr/bin/env bash
#
# run_model.sh kind ...
#	Runs spin over membership.pml within the bounds of bounds.txt whose kind is given.  TAP on stdout, with the number of states.
#
# `holds` and `large` must be searched to the end without an error; a search that ran out of memory or depth is a failure too.  `caught`
# must end in a violated assertion; its trail stays in the build folder, to be read with `spin -t -p -g`.
#
# Environment: BUILD (where to compile), MODEL_MEMORY_MB (per search).
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
build=${BUILD:-$here/../../build}/model
memory_mb=${MODEL_MEMORY_MB:-950}
number=0
failed=0

# Spin writes pan.* into the current folder.
search()
{
	local name=$1
	shift
	rm -rf "${build:?}/$name"
	mkdir -p "$build/$name"
	cp "$here/membership.pml" "$build/$name/"
	(
		cd "$build/$name" || exit 1
		spin "$@" -a membership.pml &&
			${CC:-cc} -O1 -w -DSAFETY -DNOREDUCE -DVECTORSZ=1024 -DMEMLIM="$memory_mb" -o pan pan.c &&
			./pan -E -m1000000 -w22
	) >"$build/$name.log" 2>&1
}

report()
{
	number=$((number + 1))
	echo "$1 $number - $2"
	if [ "$1" != ok ]
	then
		failed=1
		tail -25 "$build/$3.log" | sed 's/^/# /'
	fi
}

judge()
{
	local kind=$1 name=$2 log="$build/$2.log" states violated=no ended=no
	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$log")
	grep -q 'assertion violated' "$log" && violated=yes
	grep -q 'errors: 0' "$log" && ! grep -qE 'Search not completed|max search depth|out of memory' "$log" && ended=yes
	if [ "$kind" = caught ]
	then
		[ $violated = yes ] && report ok "$name is caught after $states states" || report "not ok" "$name is caught" "$name"
	else
		[ $violated = no ] && [ $ended = yes ] && report ok "$name holds in all $states states" ||
			report "not ok" "$name holds in all states" "$name"
	fi
}

# As many at a time as there are processors, but no more than two: each takes its memory.
jobs=$(nproc 2>/dev/null || echo 1)
[ "$jobs" -le 2 ] || jobs=2
kinds=()
names=()
mkdir -p "$build"
while read -r kind name bounds
do
	[[ " $* " == *" ${kind:-#} "* ]] || continue
	kinds+=("$kind")
	names+=("$name")
	mutation=
	[ "$kind" != caught ] || mutation=-D$name
	[ "$(jobs -rp | wc -l)" -lt "$jobs" ] || wait -n
	# shellcheck disable=SC2086: the bounds are words
	search "$name" $bounds $mutation &
done <"$here/bounds.txt"
wait
for i in "${!names[@]}"
do
	judge "${kinds[i]}" "${names[i]}"
done
[ $number -gt 0 ] || failed=1
echo "1..$number"
exit $failed
