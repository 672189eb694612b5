#!/bin/sh
#
# run_check.sh seed runs fresh_seed fresh_runs
#	The simulator's part of `make check`, as TAP: regressions, determinism, fixed seeds, fresh seeds.
#
# BUILD names the folder with the simulator.  A failing line carries the seed that replays it: SEED=n $BUILD/sim

sim="$BUILD/sim"
seed=$1
runs=$2
fresh_seed=$3
fresh_runs=$4
number=0
failed=0

result()
{
	number=$((number + 1))
	if [ "$1" -eq 0 ]
	then
		echo "ok $number - $2"
	else
		echo "not ok $number - $2"
		failed=1
	fi
	echo "$3" | sed 's/^/# /'
}

check()
{
	name=$1
	shift
	output=$("$sim" "$@" 2>&1)
	result $? "$name" "$output"
}

unset SEED
regressions=$(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' regressions.txt)
broken=""
count=0
for old_seed in $regressions
do
	count=$((count + 1))
	output=$("$sim" --seed "$old_seed" --runs 1 2>&1) || broken="$broken$output
"
done
[ -z "$broken" ]
result $? "seeds that once found a bug find none" "${broken:-$count seeds}"

first=$("$sim" --seed "$seed" --runs 100 --hash 2>&1)
second=$("$sim" --seed "$seed" --runs 100 --hash 2>&1)
[ -n "$first" ] && [ "$first" = "$second" ]
result $? "same seed same trace" "$first $second"

other=$("$sim" --seed $((seed + 1)) --runs 100 --hash 2>&1)
[ -n "$other" ] && [ "$first" != "$other" ]
result $? "another seed another trace" "$other"

check "$runs schedules from seed $seed keep every invariant" --seed "$seed" --runs "$runs" --jobs "$(nproc 2>/dev/null || echo 1)"
check "$fresh_runs schedules from fresh seed $fresh_seed keep every invariant" --seed "$fresh_seed" --runs "$fresh_runs"
echo "1..$number"
exit $failed
