// The law's results before their last rounding, in float64, with the magnitudes from which conformance
// derives its bounds. Arguments are host tensors, weights and pages the reference's own.
#pragma once

#include <map>
#include <vector>

#include "backend/backend.h"

namespace qiao::reference {

// The sums of a product, row-major [T, N], before bias, activation and residual.
struct Products {
  std::vector<double> sum;        // sum_k x' w'
  std::vector<double> magnitude;  // sum_k |x'| (|scale part of w'| + |minimum part|) for kQ8, else |x' w'|
  std::vector<double> x_sum;      // [T]: sum_k |x'|
  std::vector<double> w_sum;      // [E, N]: sum_k |w'|, for rows that some token met
};
Products exact_products(const Tensor& x, const Weight& weight, const Compute compute,
                        const std::vector<int64_t>& expert_of_row);
std::vector<double> exact_linear(const Linear& op, const Products& products);
// The expert of each row of x.
std::vector<int64_t> experts_of_rows(const Tensor& counts);

// Activations of a row after the compute kind's rounding (ops/common.h).
void round_activations(Compute compute, const float* x, int64_t count, double* out);

double activate(Activation activation, double soft_cap, double x);
double activation_slope(Activation activation, double x);  // of kSilu, kGelu and kGeluTanh

// What an element of a gradient adds up, without gaps: what was there (where the op adds to it) and its
// terms.
struct GradientSums {
  std::vector<double> sum;
  std::vector<double> magnitude;  // of the absolute values
  std::vector<double> operands;   // sum of |factors|, for what a unit may flush
  std::vector<double> products;   // of the absolute values without what was there
  explicit GradientSums(int64_t elements = 0)
      : sum(static_cast<size_t>(elements)),
        magnitude(sum.size()),
        operands(sum.size()),
        products(sum.size()) {}
  void begin(int64_t i, double value) {
    sum[static_cast<size_t>(i)] = value;
    magnitude[static_cast<size_t>(i)] = value < 0 ? -value : value;
  }
  void add(int64_t i, double a, double b) {
    const double product = a * b;
    sum[static_cast<size_t>(i)] += product;
    magnitude[static_cast<size_t>(i)] += product < 0 ? -product : product;
    products[static_cast<size_t>(i)] += product < 0 ? -product : product;
    operands[static_cast<size_t>(i)] += (a < 0 ? -a : a) + (b < 0 ? -b : b);
  }
};
struct LinearGradients {
  GradientSums dx, dw, dbias;  // empty where op has none
};
LinearGradients exact_linear_backward(const LinearBackward& op);
// dbias is empty. dw is [E, N, K].
LinearGradients exact_grouped_linear_backward(const GroupedLinearBackward& op);
GradientSums exact_gather_backward(const GatherBackward& op);

// The bags of op [B, C], whose divisions a mean has made, and how many rows each has.
struct BagTerms {
  GradientSums sums;
  std::vector<int64_t> rows;
};
BagTerms exact_embedding_bag(const EmbeddingBag& op);
struct BagGradients {
  std::map<int32_t, int64_t> met;  // how many places meet a row, by its id
  GradientSums rows;               // of those, in that order
  GradientSums weights;            // [n], where op has dweights
};
BagGradients exact_embedding_bag_backward(const EmbeddingBagBackward& op);

// Every score [B, V] of VectorSearch and the products it is made of.
struct SearchTerms {
  Products products;
  std::vector<double> scores;
  std::vector<double> squares;  // [B]: |q|^2, of kL2
};
SearchTerms exact_vector_search(const VectorSearch& op);
// |q|^2 of a query as the compute kind rounds it.
float query_square(const VectorSearch& op, int64_t query);
// All ids of a query's scores, best first.
std::vector<int32_t> search_order(Metric metric, const float* scores, int64_t rows);

struct AttentionTerms {
  std::vector<double> out;            // [T, H, D]
  std::vector<double> magnitude;      // [T, H, D]: sum_j p_j |v_j|
  std::vector<double> score;          // [T, H]: max_j |scale| (|q|·|k_j|)
  std::vector<int64_t> keys;          // [T]: keys seen
  std::vector<double> log_sum_exp{};  // [T, H], of attention_varlen
  // Of attention_paged, for what is rounded to F16:
  std::vector<double> spread{};  // [T, H]: max_j |scale| max|q| sum_d |k_j|
  std::vector<double> values{};  // [T, H, D]: sum_j |v_j|
};
AttentionTerms exact_attention(const AttentionPaged& op);
AttentionTerms exact_attention_varlen(const AttentionVarlen& op);

// The gradients as k and q are, without gaps, and of each its sum of magnitudes with and without p.
struct AttentionGradients {
  struct Gradient {
    std::vector<double> value, magnitude, span;
  };
  Gradient dq, dk, dv;
  std::vector<double> score;  // [T, H]: max_j |scale| (|q|·|k_j|)
};
AttentionGradients exact_attention_varlen_backward(const AttentionVarlenBackward& op);

struct NormTerms {
  std::vector<double> y, h;  // as x, without gaps
};
NormTerms exact_norm(const AddRmsNorm& op);

struct NormGradients {
  std::vector<double> dh, direct, through;  // [rows, C]: the gradient, r |g dy|, r^3 |h| / C * sum_i |g dy h|
  std::vector<double> factor;               // [rows]: r
  GradientSums dgamma;                      // of dy and h * r
};
NormGradients exact_norm_backward(const AddRmsNormBackward& op);

struct LayerNormTerms {
  std::vector<double> d, y;  // [T, C]
  std::vector<double> root;  // [T]: sqrt(mean(d^2) + epsilon)
};
LayerNormTerms exact_layer_norm(const LayerNorm& op);

// Rotates `heads` [T, H, D] (q or k of op); the result without gaps.
std::vector<double> exact_rope(const Rope& op, const Tensor& heads);
std::vector<double> exact_gated_activation(const GatedActivation& op);
std::vector<double> exact_gated_activation_backward(const GatedActivationBackward& op);  // [T, 2F]

// Scores of all experts [T, E], before normalisation: softmax or sigmoid.
std::vector<double> exact_scores(const MoeRoute& op);
// The weights [T, k] of given picks.
std::vector<double> exact_route_weights(const MoeRoute& op, const std::vector<double>& scores,
                                        const int32_t* ids);
std::vector<double> exact_combine(const MoeCombine& op);

// dlogits [T, E], and what its bound is made of.
struct RouteGradients {
  std::vector<double> dlogits;
  std::vector<double> score;            // [T, E]: q, 0 where it has no part in any weight
  std::vector<double> gradient;         // [T, E]: |g|
  std::vector<double> factor;           // [T, E]: f
  std::vector<double> picked_score;     // [T, k]: q
  std::vector<double> picked_gradient;  // [T, k]: |g|
};
RouteGradients exact_route_backward(const MoeRouteBackward& op);
GradientSums exact_permute_backward(const MoePermuteBackward& op);  // as dx
struct CombineGradients {
  std::vector<double> dsorted;  // [T * k, C]
  GradientSums dweights;        // [T, k]
};
CombineGradients exact_combine_backward(const MoeCombineBackward& op);

// One row of Sample after steps 1 and 2, and what step 3 keeps with its Gumbel score.
struct SampleTerms {
  struct Candidate {
    int32_t id;
    float z;             // after temperature (greedy: l)
    double probability;  // softmax over what top-k kept
    double score;        // z + g (greedy: l)
  };
  std::vector<float> l;                  // [V]
  std::vector<Candidate> by_z;           // all of finite l, largest z first, smaller id of equals first
  size_t kept = 0;                       // how many of by_z stay
  size_t kept_least = 0, kept_most = 0;  // the same where sums err by kSampleSlack to either side
  int32_t id = -1;
  std::vector<double> log_softmax;  // [V], of the logits as given
};
SampleTerms exact_sample(const Sample& op, int64_t row);

// z [T, V] of TokenLogprob and the products it is made of.
struct LogprobTerms {
  Products products;
  std::vector<double> z;            // [T, V]
  std::vector<double> logprob;      // [T]
  std::vector<double> log_sum_exp;  // [T]
};
LogprobTerms exact_token_logprob(const TokenLogprob& op);

struct LogprobGradients {
  LogprobTerms terms;
  std::vector<double> h;     // [T, V]: the products' gradients
  std::vector<double> size;  // [T, V]: |g| ((v == label) + p_v) / temperature
  std::vector<double> w;     // [V, C], dequantized
  std::vector<double> dx;    // [T, C]
  std::vector<double> dw;    // [V, C]: what is added
};
LogprobGradients exact_token_logprob_backward(const TokenLogprobBackward& op);

double exact_sum_of_squares(const SumOfSquares& op);

// The new values [n], and what their bounds are made of.
struct AdamWTerms {
  std::vector<double> parameters, first_moment, second_moment;
  std::vector<double> decayed;      // (1 - learning_rate * weight_decay) p
  std::vector<double> moment_size;  // |beta1 m| + |(1 - beta1) g|
  std::vector<double> divisor;      // sqrt(v) / sqrt(1 - beta2^step) + epsilon
};
AdamWTerms exact_adamw(const AdamW& op);

struct MuonTerms {
  std::vector<double> parameters, momentum;  // new, [N, K]
  std::vector<double> decayed;               // (1 - learning_rate * weight_decay) p
  std::vector<double> momentum_size;         // |beta m| + |(1 - beta) g|
  std::vector<double> orthogonal;            // X after five steps, [N, K]
  double orthogonal_error = 0;               // E
};
MuonTerms exact_muon(const Muon& op);

// Element [i, j…] of an F32 tensor.
inline float at(const Tensor& t, int64_t i) { return t.as<float>()[i * t.stride[0]]; }
inline float& at(const Tensor& t, int64_t i, int64_t j) {
  return t.as<float>()[i * t.stride[0] + j * t.stride[1]];
}
inline float& at(const Tensor& t, int64_t i, int64_t j, int64_t k) {
  return t.as<float>()[i * t.stride[0] + j * t.stride[1] + k * t.stride[2]];
}
inline int32_t& int_at(const Tensor& t, int64_t i, int64_t j = 0) {
  return t.as<int32_t>()[i * t.stride[0] + j * t.stride[1]];
}

}  // namespace qiao::reference
