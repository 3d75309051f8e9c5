/*
 * Balances of accounts, with llm_accounts' state=FILE.
 *
 * Each worker appends a charge to the journal (ngx_http_llm_journal.h) when a
 * request is settled.
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
