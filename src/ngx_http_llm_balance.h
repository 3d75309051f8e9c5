/*
 * Balances of accounts, with llm_accounts' state=FILE.
 *
 * FORMAT    The journal (ledger/ledger_journal.h) is the only truth.  A zone of
 * shared memory has what is summed up from it: for each account its balance
 * and up to where of the file it is, and up to where the file was read.
 *
 * WRITERS   Each worker appends a charge when a request is settled, with one
 * write(), and then, like anyone who wants to know a balance, reads what is new
 * in the file and adds it up, under the zone's lock.  So what other workers,
 * another master after a binary upgrade and llm-ledger credit appended is
 * counted the same way, once, by whichever worker comes first.
 *
 * RECOVERY  A record is added to a balance by one store, which changes balance
 * and place together; who is killed before the place of the whole file moved
 * on leaves a record to be read again that the account already has.  A new
 * zone, after a start or a reload that changes its size, reads the file from
 * its begin.
 *
 * AT RISK   A request counts once its charge is written, which is before the
 * last bytes of its answer leave.  If a worker is killed, the requests that it
 * had in flight are not charged; everything that was written is, once.  If the
 * machine stops, so may be what the kernel had not yet written to the disk.
 */

#ifndef NGX_HTTP_LLM_BALANCE_H
#define NGX_HTTP_LLM_BALANCE_H

#include "ngx_http_llm_module.h"


extern ngx_module_t  ngx_http_llm_balance_module;


/*
 * An account's balance in nanodollars, as the journal has it now.
 * NGX_DECLINED: it has none, or there is no journal.
 */

ngx_int_t ngx_http_llm_balance(ngx_http_request_t *r, ngx_str_t *account,
    int64_t *nano);


#endif /* NGX_HTTP_LLM_BALANCE_H */
