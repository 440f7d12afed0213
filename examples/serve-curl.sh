#!/bin/sh
# What a running "dultra serve" answers to curl: sh serve-curl.sh [URL]
set -eu
url=${1:-http://127.0.0.1:8242}

# ask ROUTE BODY; -N shows what a stream has as it comes. A key goes into the header of OpenAI's clients.
ask() {
  curl -sSN "$url$1" -H 'content-type: application/json' ${DULTRA_KEY:+-H "authorization: Bearer $DULTRA_KEY"} -d "$2"
  echo
}

echo '# A chat'
ask /v1/chat/completions '{"messages": [{"role": "user", "content": "What is 8 + 6?"}], "max_tokens": 12}'

echo '# A stream with what each pass decided'
ask /v1/completions '{"prompt": "What is 8 + 6?", "max_tokens": 12, "stream": true, "stream_mode": "denoise"}'

echo '# What stands between two texts'
ask /v1/fim/completions '{"prompt": "What is 8 + 6? 8 + 6 =", "suffix": ".", "max_tokens": 1}'

echo '# A value of a schema'
ask /v1/chat/completions '{
  "messages": [{"role": "user", "content": "What is 8 + 6?"}],
  "response_format": {
    "type": "json_schema",
    "json_schema": {"name": "sum", "schema": {"type": "integer", "minimum": 0, "maximum": 99}}
  }
}'

echo '# How probable each answer to a question is'
ask /v1/systemone '{
  "state": "The soup was awful and the waiter was dreadful.",
  "questions": {"again": {"type": "noul", "instructions": "Will the customer buy again?"}}
}'
