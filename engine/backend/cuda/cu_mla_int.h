/*
 * Inside cu_mla_attend(): its second launch.
 */

#ifndef CU_MLA_INT_H
#define CU_MLA_INT_H

#include "cu_mla.h"

#ifdef __cplusplus
extern "C" {
#endif


/* part [max_parts][64][512], part_ml [max_parts][2][64] maxima and sums. */

int cu_mla_merge(const cu_mla_attend_t *a, const float *part,
    const float *part_ml, void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_MLA_INT_H */
