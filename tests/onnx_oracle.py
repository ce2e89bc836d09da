"""The operators RNN, GRU and LSTM as ONNX's specification words them: one row, one step and one gate at a time.

It shares no code and no layout with fastrnn: NumPy in double precision, ONNX's names, order of gates and shapes.
"""

import numpy as np

FORMULAS = {
    "Relu": lambda x: np.maximum(0, x),
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "LeakyRelu": lambda x, alpha=0.01: np.where(x >= 0, x, alpha * x),
    "ThresholdedRelu": lambda x, alpha=1.0: np.where(x >= alpha, x, 0),
    "ScaledTanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: np.minimum(np.maximum(alpha * x + beta, 0), 1),
    "Elu": lambda x, alpha=1.0: np.where(x >= 0, x, alpha * (np.exp(x) - 1)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.log(1 + np.exp(x)),
}
PARAMETERS = {"Affine": 2, "LeakyRelu": 1, "ThresholdedRelu": 1, "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1}
DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def evaluate(op, attributes, tensors):
    """Outputs Y, Y_h (, Y_c) from attributes by name and inputs X, W, R, ... by ONNX's names."""
    double = {key: value.astype(float) for key, value in tensors.items() if key != "sequence_lens"}
    X, W, R = double["X"], double["W"], double["R"]
    batchwise = attributes.get("layout", 0) == 1
    if batchwise:
        X = X.swapaxes(0, 1)
    T, batch, _ = X.shape
    D, H = W.shape[0], R.shape[2]
    lengths = tensors.get("sequence_lens", np.full(batch, T))
    functions = activations(op, attributes, D)
    B = double.get("B", np.zeros((D, 2 * GATES[op] * H)))
    P = double.get("P", np.zeros((D, 3 * H)))
    initial = [
        double.get(key, np.zeros((batch, D, H) if batchwise else (D, batch, H))) for key in ("initial_h", "initial_c")
    ]
    if batchwise:
        initial = [state.swapaxes(0, 1) for state in initial]
    Y, Y_h, Y_c = np.zeros((T, D, batch, H)), np.zeros((D, batch, H)), np.zeros((D, batch, H))
    for d in range(D):
        backwards = d == 1 or attributes.get("direction") == "reverse"
        step = STEPS[op](W[d], R[d], B[d], P[d], functions[d], attributes)
        for b in range(batch):
            h, c = initial[0][d, b], initial[1][d, b]
            times = range(lengths[b])
            for t in reversed(times) if backwards else times:
                h, c = step(X[t, b], h, c)
                Y[t, d, b] = h
            Y_h[d, b], Y_c[d, b] = h, c
    if batchwise:
        Y, Y_h, Y_c = Y.transpose(2, 0, 1, 3), Y_h.swapaxes(0, 1), Y_c.swapaxes(0, 1)
    return [Y, Y_h, Y_c] if op == "LSTM" else [Y, Y_h]


def activations(op, attributes, D):
    """[direction][position] -> function; alphas and betas are consumed in the order of the functions."""
    names = attributes.get("activations", DEFAULTS[op] * D)
    alphas, betas = iter(attributes.get("activation_alpha", [])), iter(attributes.get("activation_beta", []))
    limit = attributes.get("clip", np.inf)
    functions = []
    for name in names:
        given = [next(values, None) for values in (alphas, betas)[: PARAMETERS.get(name, 0)]]
        given = [value for value in given if value is not None]
        functions.append(lambda x, f=FORMULAS[name], given=given: f(np.clip(x, -limit, limit), *given))
        functions[-1].unclipped = lambda x, f=FORMULAS[name], given=given: f(x, *given)
    n = len(names) // D
    return [functions[d * n : (d + 1) * n] for d in range(D)]


def rnn(W, R, B, P, functions, attributes):
    (f,) = functions
    Wb, Rb = np.split(B, 2)
    return lambda x, h, c: (f(x @ W.T + h @ R.T + Wb + Rb), c)


def gru(W, R, B, P, functions, attributes):
    f, g = functions
    (Wz, Wr, Wh), (Rz, Rr, Rh) = np.split(W, 3), np.split(R, 3)
    Wbz, Wbr, Wbh, Rbz, Rbr, Rbh = np.split(B, 6)

    def step(x, h, c):
        z = f(x @ Wz.T + h @ Rz.T + Wbz + Rbz)
        r = f(x @ Wr.T + h @ Rr.T + Wbr + Rbr)
        if attributes.get("linear_before_reset", 0):
            n = g(x @ Wh.T + r * (h @ Rh.T + Rbh) + Wbh)
        else:
            n = g(x @ Wh.T + (r * h) @ Rh.T + Rbh + Wbh)
        return (1 - z) * n + z * h, c

    return step


def lstm(W, R, B, P, functions, attributes):
    f, g, h_function = functions
    (Wi, Wo, Wf, Wc), (Ri, Ro, Rf, Rc) = np.split(W, 4), np.split(R, 4)
    Wbi, Wbo, Wbf, Wbc, Rbi, Rbo, Rbf, Rbc = np.split(B, 8)
    Pi, Po, Pf = np.split(P, 3)

    def step(x, h, c):
        i = f(x @ Wi.T + h @ Ri.T + Pi * c + Wbi + Rbi)
        forget = f(x @ Wf.T + h @ Rf.T + Pf * c + Wbf + Rbf)
        if attributes.get("input_forget", 0):
            forget = 1 - i
        c = forget * c + i * g(x @ Wc.T + h @ Rc.T + Wbc + Rbc)
        o = f(x @ Wo.T + h @ Ro.T + Po * c + Wbo + Rbo)
        return o * h_function.unclipped(c), c  # onnxruntime clips the inputs of the gates only

    return step


STEPS = {"RNN": rnn, "GRU": gru, "LSTM": lstm}
