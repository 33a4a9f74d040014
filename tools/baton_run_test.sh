#!/bin/sh
# baton-run from the outside: what it prints, that prompts from text and from ids agree, and how it fails.
# usage: baton_run_test.sh PROGRAM; runs in the repository's root.
run="$1 --log-level error"
model=deploy/models/nano-r1
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
failed=0

# expect NAME STATUS TEXT COMMAND...: the exit status, and a text that stdout or stderr must hold
expect() {
    name=$1 status=$2 text=$3
    shift 3
    "$@" > "$dir/out" 2>&1 < "$dir/in"
    found=$?
    if [ $found -ne "$status" ] || ! grep -qF -- "$text" "$dir/out"; then
        echo "failed: $name: status $found, expected $status and \"$text\", got:"
        head -c 600 "$dir/out"
        failed=1
    fi
}

: > "$dir/in"
expect "answers a chat in float32" 0 '17 + 25 = 42"' $run --model $model --backend ref --chat 'What is 17 + 25?'
expect "answers a chat on the default backend" 0 '17 + 25 = 42"' $run --model $model --chat 'What is 17 + 25?'
echo '0 2036 491 303 223 19 25 262 223 20 23 33 2037 2031 201' > "$dir/ids"
expect "continues ids, as many as told" 0 '"ids": [25, 262, 223]' \
    $run --model $model --backend ref --ids-file "$dir/ids" --max-tokens 3 --logits-out "$dir/logits"
expect "in chunks of any size" 0 '"ids": [25, 262, 223]' \
    $run --model $model --backend ref --ids-file "$dir/ids" --max-tokens 3 --max-num-batched-tokens 2
[ "$(wc -c < "$dir/logits")" -eq 8192 ] || { echo "failed: the logits have the vocabulary's size"; failed=1; }
expect "on three ranks the same" 0 '"ids": [25, 262, 223]' \
    $run --model $model --backend ref --ids-file "$dir/ids" --max-tokens 3 --ep 3 \
    --placement-out "$dir/placement" --placement-slots 20
expect "on ranks with replicas by load" 0 '"ids": [25, 262, 223]' \
    $run --model $model --backend ref --ids-file "$dir/ids" --max-tokens 3 --ep 3 --placement "$dir/placement"
expect "refuses a placement for other ranks" 1 'expected "n_ranks": 2' \
    $run --model $model --ids-file "$dir/ids" --ep 2 --placement "$dir/placement"
expect "refuses more ranks than experts" 1 '99 ranks for' $run --model $model --ids-file "$dir/ids" --ep 99
expect "computes only the prompt" 0 '"ids": [], "text": ""' $run --model $model --ids-file "$dir/ids" --max-tokens 0
$run --model $model --ids-file "$dir/ids" --temperature 1 --seed 7 2>&1 | sed 's/, "prefill_ms.*//' > "$dir/one"
$run --model $model --ids-file "$dir/ids" --temperature 1 --seed 7 2>&1 | sed 's/, "prefill_ms.*//' > "$dir/two"
cmp -s "$dir/one" "$dir/two" || { echo "failed: the same seed gives the same tokens"; failed=1; }

echo '{"text": "hi there"}' > "$dir/in"
expect "encodes lines" 0 '{"ids": [1133, 1404]}' $run --model $model --encode
echo '{"ids": [1133, 1404]}' > "$dir/in"
expect "decodes lines" 0 '{"text": "hi there"}' $run --model $model --decode
echo '{"messages": [{"role": "user", "content": "Hi"}]}' > "$dir/in"
expect "renders lines" 0 'Hi<｜Assistant｜><think>\n"}' $run --model $model --render
printf '{"text": 7}\nnot json\n[]\n' > "$dir/in"
expect "answers bad lines in their place" 1 '3 of 3 lines failed' $run --model $model --encode

: > "$dir/in"
expect "wants a model" 2 '--model is missing' $run --prompt x
expect "wants one mode" 2 'expected one of' $run --model $model --prompt x --encode
expect "knows its flags" 2 "unknown flag '--promt'" $run --model $model --promt x
expect "names a missing folder" 1 "$dir/none" $run --model "$dir/none" --prompt x
expect "names an unknown backend" 1 'backend is "tpu"' $run --model $model --backend tpu --prompt x
echo '0 2048' > "$dir/ids"
expect "refuses ids outside the vocabulary" 1 'token id 2048 at 1' $run --model $model --ids-file "$dir/ids"
echo '0 x' > "$dir/ids"
expect "refuses what is no id" 1 'is not a token id' $run --model $model --ids-file "$dir/ids"
: > "$dir/ids"
expect "refuses an empty prompt" 1 'no tokens' $run --model $model --ids-file "$dir/ids"
expect "refuses chunks of nothing" 1 'rows per step is 0' $run --model $model --prompt x --max-num-batched-tokens 0
exit $failed
